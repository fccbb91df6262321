//! `allotrope bench`: measurements, with the definitions of vLLM's benchmarks.

mod dataset;
mod latency;
mod numbers;
mod offline;
mod serve;
mod startup;
mod throughput;

use std::time::Instant;

use allotrope_config::environment::Environment;
use clap::ArgMatches;
use indicatif::{ProgressBar, ProgressStyle};

use crate::arguments;
use crate::error::CliError;

pub(super) fn run(matches: &ArgMatches, started: Instant, environment: &Environment) -> Result<(), CliError> {
    match matches.subcommand() {
        Some((arguments::SERVE, matches)) => serve::run(matches, environment),
        Some((arguments::LATENCY, matches)) => latency::run(matches, started, environment),
        Some((arguments::THROUGHPUT, matches)) => throughput::run(matches, started, environment),
        Some((arguments::STARTUP, matches)) => startup::run(matches),
        // clap requires one of the commands that it was told of.
        _ => Err(CliError::Usage("no benchmark was given; `allotrope bench --help` lists them".to_owned())),
    }
}

/// A count of the command line, which has a default.
fn count(matches: &ArgMatches, name: &str) -> usize {
    matches.get_one::<u32>(name).map_or(0, |&number| usize::try_from(number).unwrap_or(usize::MAX))
}

/// A bar on standard error, if that is a terminal.
fn progress(total: usize, of: &str) -> ProgressBar {
    let progress = ProgressBar::new(total as u64);
    // A template that is not understood leaves the library's own.
    if let Ok(style) =
        ProgressStyle::with_template(&format!("{{wide_bar}} {{pos}}/{{len}} {of}, {{elapsed}}, {{eta}} left"))
    {
        progress.set_style(style);
    }
    progress
}
