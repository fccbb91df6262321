//! What the engine counts, read when someone asks.

use allotrope_engine::{ModelInfo, STEP_TOKEN_BOUNDS, Statistics};

use super::exposition::Exposition;
use crate::model::ServedModel;

const GAUGE: &str = "gauge";
const COUNTER: &str = "counter";

/// The engine's metrics as text.
pub(super) fn exposition(model: &ServedModel, prefix: &str) -> String {
    let status = model.llm.engine().status();
    let mut out = Exposition::new(prefix, model.name());
    let (waiting, waiting_tokens) = status.waiting();
    let (used, total) = status.blocks();
    let usage = if total == 0 { 0.0 } else { used as f64 / total as f64 };
    out.single(GAUGE, "num_requests_running", "Requests that hold blocks of the KV cache.", status.running());
    let waiting = waiting + status.preempted();
    out.single(GAUGE, "num_requests_waiting", "Requests that wait for their first step, or to go on.", waiting);
    out.single(GAUGE, "num_tokens_waiting", "Tokens of the prompts of requests that wait.", waiting_tokens);
    out.single(GAUGE, "kv_cache_usage_perc", "Part of the KV cache's blocks that is in use, from 0 to 1.", usage);
    out.single(COUNTER, "admission_rejections_total", "Requests refused as too many waited.", status.rejections());
    out.single(COUNTER, "engine_steps_total", "Steps of the engine.", status.steps());
    let (sizes, tokens) = status.step_sizes();
    out.histogram("iteration_tokens_total", "Tokens of a step.", &STEP_TOKEN_BOUNDS, &sizes, tokens);
    if let Some(statistics) = status.statistics() {
        write_statistics(&mut out, &statistics);
    }
    if let Some(info) = model.llm.info() {
        write_info(&mut out, info, total);
    }
    out.into_text()
}

fn write_statistics(out: &mut Exposition<'_>, statistics: &Statistics) {
    let throughput = &statistics.throughput;
    let mut count = |name, help, value: u64| out.single(COUNTER, name, help, value);
    count(
        "num_preemptions_total",
        "Requests that gave their blocks back and were computed again.",
        throughput.preemptions,
    );
    count("prefix_cache_queries_total", "Tokens looked for in the prefix cache.", throughput.prefix_cache_queries);
    count("prefix_cache_hits_total", "Those that were there.", throughput.prefix_cache_hits);
    count("corrupted_requests_total", "Requests for which no token could be chosen.", throughput.corrupted_requests);
    count(
        "device_sampled_tokens_total",
        "Tokens that the device chose by itself.",
        throughput.tokens_sampled_on_device,
    );
    let dispatch = &statistics.dispatch;
    count("graph_recorded_tokens_total", "Tokens that were run from recordings.", dispatch.recorded_tokens);
    count("graph_padding_tokens_total", "Tokens that these recordings were made for beyond.", dispatch.padding_tokens);
    count("late_captures_total", "Recordings made after the model was ready.", statistics.late_captures);
    let mut seconds = |name, help, time: std::time::Duration| out.single(COUNTER, name, help, time.as_secs_f64());
    seconds("prefill_seconds_total", "Time of steps that held part of a prompt.", throughput.prefill_time);
    seconds("decode_seconds_total", "Time of steps that only decoded.", throughput.decode_time);
    seconds("scheduler_seconds_total", "Of both, time to choose and to keep the books.", throughput.scheduler_time);
    seconds("sampling_seconds_total", "Of both, time of the host to choose tokens.", throughput.sampling_time);
    out.single(GAUGE, "graph_recordings", "Recordings that exist.", statistics.recordings);
    out.single(GAUGE, "graph_failed_captures", "Recordings that could not be made.", statistics.failed_captures);
    let memory = statistics.capture_memory.unwrap_or(0);
    out.single(GAUGE, "graph_capture_bytes", "Bytes of device memory that recordings took.", memory);
    let name = "graph_steps_total";
    out.head(COUNTER, name, "Steps by how they ran, and why.");
    for ((mode, reason), steps) in &statistics.dispatch.steps {
        out.sample(name, &[("mode", mode), ("reason", reason)], steps);
    }
}

fn write_info(out: &mut Exposition<'_>, info: &ModelInfo, blocks: usize) {
    let block_size = info.settings.cache.block_size.to_string();
    let blocks = blocks.to_string();
    let name = "cache_config_info";
    out.head(GAUGE, name, "How the KV cache is laid out.");
    out.sample(name, &[("block_size", &block_size), ("num_gpu_blocks", &blocks)], 1);
    let level = info.settings.optimization_level.to_string();
    let name = "optimization_level_info";
    out.head(GAUGE, name, "The optimization level, and the device that runs the model.");
    out.sample(name, &[("level", &level), ("device", &info.device_name)], 1);
    let name = "startup_seconds";
    out.head(GAUGE, name, "The phases of the start.");
    for phase in &info.startup.phases {
        out.sample(name, &[("phase", &phase.name)], phase.time.as_secs_f64());
    }
    out.single(GAUGE, "startup_total_seconds", "From the start to ready.", info.startup.total.as_secs_f64());
    out.single(GAUGE, "kv_cache_bytes", "Bytes of the KV cache.", info.kv_cache_bytes);
    out.single(GAUGE, "kv_cache_tokens", "Tokens that the KV cache holds.", info.kv_cache_tokens);
}
