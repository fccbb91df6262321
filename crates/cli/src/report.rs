//! The report after a run: how the time of the start was spent, and how fast it went.

use std::io::{self, Write};
use std::time::Duration;

use allotrope_engine::{Llm, TuningReport};
use serde_json::{Value, json};

/// Tokens per second; `None` where nothing was measured.
pub(crate) fn rate(tokens: u64, time: Duration) -> Option<f64> {
    let seconds = time.as_secs_f64();
    (tokens > 0 && seconds > 0.0).then(|| tokens as f64 / seconds)
}

/// Writes the report to standard error, for a person or as one line of JSON.
pub(crate) fn write(llm: &Llm, as_json: bool) {
    let text = if as_json { format!("{}\n", json_of(llm)) } else { text_of(llm) };
    // The results have been written; if nobody reads the report, nothing is lost.
    let _ = io::stderr().lock().write_all(text.as_bytes());
}

fn text_of(llm: &Llm) -> String {
    let statistics = llm.statistics();
    let throughput = statistics.throughput;
    let line = |name: &str, tokens: u64, time: Duration| {
        let speed = rate(tokens, time).map_or_else(String::new, |rate| format!(", {rate:.1} tokens/s"));
        format!("{name:<9}{tokens} tokens in {:.1} ms{speed}", time.as_secs_f64() * 1e3)
    };
    let mut text = format!("\nstartup\n{}\n", llm.startup());
    if let Some(time) = statistics.time_to_first_token {
        text.push_str(&format!("  {:<28}{:>10.1} ms\n", "first token", time.as_secs_f64() * 1e3));
    }
    text.push_str(&format!("device   {}\n", llm.device_name()));
    if let Some(tuning) = statistics.tuning {
        let TuningReport { cached, searched, left, time } = tuning;
        let milliseconds = time.as_secs_f64() * 1e3;
        text.push_str(&format!(
            "tuning   {cached} kernels known, {searched} searched in {milliseconds:.1} ms, {left} left\n"
        ));
    }
    text.push_str(&line("prefill", throughput.prefill_tokens, throughput.prefill_time));
    text.push('\n');
    if throughput.decode_tokens > 0 {
        text.push_str(&line("decode", throughput.decode_tokens, throughput.decode_time));
        let submissions = throughput.submissions_per_decode_step;
        text.push_str(&format!(
            "; {} kernels per step in {submissions} submission{}\n",
            throughput.launches_per_decode_step,
            if submissions == 1 { "" } else { "s" }
        ));
    }
    text
}

fn json_of(llm: &Llm) -> Value {
    let (startup, statistics) = (llm.startup(), llm.statistics());
    let throughput = statistics.throughput;
    let phases: Vec<Value> =
        startup.phases.iter().map(|phase| json!({ "name": phase.name, "seconds": phase.time.as_secs_f64() })).collect();
    let dispatch: Vec<Value> = statistics
        .dispatch
        .steps
        .iter()
        .map(|((mode, reason), steps)| json!({ "mode": mode, "reason": reason, "steps": steps }))
        .collect();
    json!({
        "device": llm.device_name(),
        "optimization_level": llm.settings().optimization_level.to_string(),
        "startup": {
            "phases": phases,
            "unclaimed_seconds": startup.unclaimed().as_secs_f64(),
            "ready_seconds": startup.total.as_secs_f64(),
            "first_token_seconds": statistics.time_to_first_token.map(|time| time.as_secs_f64()),
        },
        "prefill": speed(throughput.prefill_tokens, throughput.prefill_time),
        "decode": speed(throughput.decode_tokens, throughput.decode_time),
        "launches_per_decode_step": throughput.launches_per_decode_step,
        "submissions_per_decode_step": throughput.submissions_per_decode_step,
        "steps": throughput.steps,
        "scheduler_seconds": throughput.scheduler_time.as_secs_f64(),
        "sampling_seconds": throughput.sampling_time.as_secs_f64(),
        "prefix_cache": { "queries": throughput.prefix_cache_queries, "hits": throughput.prefix_cache_hits },
        "preemptions": throughput.preemptions,
        "recordings": statistics.recordings,
        "failed_captures": statistics.failed_captures,
        "late_captures": statistics.late_captures,
        "capture_memory_bytes": statistics.capture_memory,
        "dispatch": dispatch,
        "tuning": statistics.tuning.map(|tuning| json!({
            "cached": tuning.cached,
            "searched": tuning.searched,
            "left": tuning.left,
            "seconds": tuning.time.as_secs_f64(),
        })),
        "arena_bytes": statistics.arena_bytes,
        "weight_bytes_per_step": statistics.weight_bytes_per_step,
        "kv_cache_tokens": statistics.kv_cache_tokens,
    })
}

fn speed(tokens: u64, time: Duration) -> Value {
    json!({ "tokens": tokens, "seconds": time.as_secs_f64(), "tokens_per_second": rate(tokens, time) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_needs_tokens_and_time() {
        assert_eq!(rate(10, Duration::from_millis(500)), Some(20.0));
        assert_eq!(rate(0, Duration::from_secs(1)), None);
        assert_eq!(rate(1, Duration::ZERO), None);
    }
}
