//! `allotrope bench throughput`: many prompts at once.

use std::time::Instant;

use allotrope_config::environment::Environment;
use clap::ArgMatches;
use serde_json::json;

use super::count;
use super::dataset::Lengths;
use super::offline::{Bench, save};
use crate::error::CliError;
use crate::{arguments, output};

pub(super) fn run(matches: &ArgMatches, started: Instant, environment: &Environment) -> Result<(), CliError> {
    let lengths = Lengths {
        prefix: 0,
        input: count(matches, arguments::INPUT_LEN),
        output: count(matches, arguments::OUTPUT_LEN),
        range_ratio: matches.get_one(arguments::RANDOM_RANGE_RATIO).copied().unwrap_or_default(),
    };
    let mut bench = Bench::load(matches, lengths, started, environment)?;
    let tasks = bench.tasks(count(matches, arguments::NUM_PROMPTS));
    let (completions, seconds) = bench.answer(&tasks)?;
    let input: usize = completions.iter().map(|completion| completion.prompt_tokens).sum();
    let output: usize = completions.iter().map(|completion| completion.tokens.len()).sum();
    let rate = |count: usize| if seconds > 0.0 { count as f64 / seconds } else { 0.0 };
    let (requests, total) = (completions.len(), input + output);
    output::show(format_args!(
        "Throughput: {:.2} requests/s, {:.2} total tokens/s, {:.2} output tokens/s\n\
         Total prompt tokens: {input}\nTotal output tokens: {output}\n",
        rate(requests),
        rate(total),
        rate(output)
    ))?;
    save(
        matches,
        &json!({
            "elapsed_time": seconds,
            "num_requests": requests,
            "total_num_tokens": total,
            "requests_per_second": rate(requests),
            "tokens_per_second": rate(total),
            "total_output_tokens": output,
            "output_tokens_per_second": rate(output),
            "device": bench.llm.device_name(),
            "optimization_level": bench.llm.settings().optimization_level.to_string(),
        }),
    )
}
