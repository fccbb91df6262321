//! `allotrope bench latency`: one batch, over and over.

use std::time::Instant;

use allotrope_config::environment::Environment;
use clap::ArgMatches;
use serde_json::{Value, json};

use super::dataset::Lengths;
use super::numbers::{PERCENTILES, Sample, name};
use super::offline::{Bench, save};
use super::{count, progress};
use crate::error::CliError;
use crate::{arguments, output};

pub(super) fn run(matches: &ArgMatches, started: Instant, environment: &Environment) -> Result<(), CliError> {
    let lengths = Lengths {
        prefix: 0,
        input: count(matches, arguments::INPUT_LEN),
        output: count(matches, arguments::OUTPUT_LEN),
        range_ratio: 0.0,
    };
    let (warmup, measured) = (count(matches, arguments::NUM_ITERS_WARMUP), count(matches, arguments::NUM_ITERS));
    let batch = count(matches, arguments::BATCH_SIZE);
    let mut bench = Bench::load(matches, lengths, started, environment)?;
    let progress = progress(warmup.saturating_add(measured), "batches");
    let mut latencies = Vec::new();
    for iteration in 0..warmup.saturating_add(measured) {
        let tasks = bench.tasks(batch);
        let (_, seconds) = bench.answer(&tasks)?;
        if iteration >= warmup {
            latencies.push(seconds);
        }
        progress.inc(1);
    }
    progress.finish_and_clear();
    let sample = Sample::new(latencies.clone());
    output::show(text(&sample))?;
    let result: Value = json!({
        "avg_latency": sample.mean(),
        "latencies": latencies,
        "percentiles": sample.percentiles(),
        "device": bench.llm.device_name(),
        "optimization_level": bench.llm.settings().optimization_level.to_string(),
        "batch_size": batch,
        "input_len": lengths.input,
        "output_len": lengths.output,
    });
    save(matches, &result)
}

fn text(sample: &Sample) -> String {
    let mut text = format!("Average latency: {:.6} s\n", sample.mean());
    for percentile in PERCENTILES {
        text.push_str(&format!("{}% percentile latency: {:.6} s\n", name(percentile), sample.percentile(percentile)));
    }
    text
}
