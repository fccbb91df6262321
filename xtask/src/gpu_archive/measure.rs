//! One start of a checkpoint, and its steps at some batch sizes, as a user of the library would see them: a step is the whole of
//! it, with the choice of the next token.

use std::time::Duration;

use allotrope_config::OptimizationLevel;
use allotrope_engine::{Llm, Prompt, SamplingParams};
use serde_json::{Map, Value, json};

use super::{Subject, message};
use crate::bench::page_cache;
use crate::bench::statistics::Summary;
use crate::error::TaskError;
use crate::runner::prompt;

/// What to measure.
#[derive(clap::Args)]
pub(super) struct Options {
    #[command(flatten)]
    subject: Subject,
    /// The optimization level
    #[arg(long, value_name = "LEVEL", default_value = "2")]
    level: OptimizationLevel,
    /// Begin with the checkpoint's files out of the page cache, and measure the start alone. That no compiled kernels are kept
    /// is up to the caller
    #[arg(long)]
    cold: bool,
    /// Sequences that decode together
    #[arg(long, value_name = "SIZES", value_delimiter = ',', default_value = "1,8,32")]
    batches: Vec<u32>,
    /// Length of the prompt that is timed, in tokens
    #[arg(long, value_name = "N", default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..))]
    prompt_tokens: u32,
    /// Decode steps of each round
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..))]
    steps: u32,
    /// Rounds of each measurement after one that does not count
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
}

/// Tokens of the prompts before timed decode steps.
const SHORT_PROMPT: u32 = 16;

/// Starts, measures and prints.
///
/// # Errors
/// If the checkpoint can't be loaded on the device, or a step fails.
pub(super) fn run(options: &Options) -> Result<(), TaskError> {
    let subject = &options.subject;
    if options.cold {
        page_cache::drop_files(&subject.model)?;
    }
    let mut llm = subject.builder(options.level)?.build().map_err(message)?;
    let mut result = start(&llm, options)?;
    if !options.cold {
        let vocabulary = vocabulary(subject)?;
        let mut prefill = Vec::new();
        let mut steps = Vec::new();
        for _ in 0..=options.rounds {
            let (time, _) = timed(&mut llm, &[prompt(options.prompt_tokens, vocabulary)], 1)?;
            prefill.push(f64::from(options.prompt_tokens) / time.as_secs_f64());
        }
        for batch in &options.batches {
            let prompts: Vec<Vec<u32>> = (0..*batch).map(|_| prompt(SHORT_PROMPT, vocabulary)).collect();
            let mut microseconds = Vec::new();
            for _ in 0..=options.rounds {
                let (_, [tokens, time]) = timed(&mut llm, &prompts, options.steps as usize + 1)?;
                microseconds.push(time * 1e6 * f64::from(*batch) / tokens);
            }
            steps.push(json!({ "batch": batch, "microseconds": summary(&microseconds)? }));
        }
        let throughput = llm.statistics().throughput;
        result.insert("prefill_tokens_per_second".into(), json!(summary(&prefill)?));
        result.insert("steps".into(), json!(steps));
        result.insert("launches".into(), json!(throughput.launches_per_decode_step));
        result.insert("submissions".into(), json!(throughput.submissions_per_decode_step));
        let dispatch = llm.statistics().dispatch;
        let dispatch = dispatch.steps.iter().map(|((mode, reason), steps)| json!([mode, reason, steps]));
        result.insert("dispatch".into(), dispatch.collect());
        // What the start had to do with is not done again.
        result.insert("late_captures".into(), json!(llm.statistics().late_captures));
    }
    subject.tell(&Value::Object(result))
}

/// What the start took.
fn start(llm: &Llm, options: &Options) -> Result<Map<String, Value>, TaskError> {
    let (startup, statistics) = (llm.startup(), llm.statistics());
    let phases: Map<String, Value> = startup
        .phases
        .iter()
        .map(|phase| (phase.name.clone(), json!(phase.time.as_secs_f64() * 1e3)))
        .chain([("(unclaimed)".to_owned(), json!(startup.unclaimed().as_secs_f64() * 1e3))])
        .collect();
    let result = json!({
        "kind": "measurement",
        "model": options.subject.name(),
        "level": options.level.to_string(),
        "start": if options.cold { "cold" } else { "warm" },
        "device": llm.device_name(),
        "ready_ms": startup.total.as_secs_f64() * 1e3,
        "phases_ms": phases,
        "upload_bytes": statistics.weight_upload.map(|upload| upload.bytes),
        "upload_ms": statistics.weight_upload.map(|upload| upload.time.as_secs_f64() * 1e3),
        "recordings": statistics.recordings,
        "failed_captures": statistics.failed_captures,
        "capture_bytes": statistics.capture_memory,
        "arena_bytes": statistics.arena_bytes,
        "kv_cache_tokens": statistics.kv_cache_tokens,
    });
    match result {
        Value::Object(fields) => Ok(fields),
        other => Err(message(format!("{other} is no object"))),
    }
}

/// Runs prompts together for so many tokens each: the time of the prefill, and tokens and seconds of the steps that only
/// decoded.
fn timed(llm: &mut Llm, prompts: &[Vec<u32>], tokens: usize) -> Result<(Duration, [f64; 2]), TaskError> {
    let prompts: Vec<Prompt> = prompts.iter().cloned().map(Prompt::Tokens).collect();
    let params = SamplingParams { max_tokens: Some(tokens), ignore_eos: true, ..SamplingParams::greedy() };
    let before = llm.statistics().throughput;
    llm.generate(&prompts, &params).map_err(message)?;
    let after = llm.statistics().throughput;
    let decoded = (after.decode_tokens - before.decode_tokens) as f64;
    let decode_time = after.decode_time.saturating_sub(before.decode_time);
    Ok((after.prefill_time.saturating_sub(before.prefill_time), [decoded, decode_time.as_secs_f64()]))
}

/// Summarizes all but the first.
fn summary(values: &[f64]) -> Result<Summary, TaskError> {
    Summary::of(values.get(1..).unwrap_or_default()).ok_or_else(|| message("a measurement is not a number"))
}

/// Size of the vocabulary.
fn vocabulary(subject: &Subject) -> Result<u32, TaskError> {
    let checkpoint = allotrope_model::Checkpoint::open(&subject.model).map_err(message)?;
    u32::try_from(checkpoint.config().vocab_size).map_err(message)
}
