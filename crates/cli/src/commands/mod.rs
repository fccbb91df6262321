//! One module for each command.

mod bench;
mod chat;
mod complete;
mod completions;
mod explain;
mod generate;
mod graph;
mod logits;
mod serve;
mod settings;

use std::time::Instant;

use allotrope_config::environment::Environment;
use clap::ArgMatches;

use crate::arguments;
use crate::error::CliError;

/// Runs the command that was chosen.
pub(crate) fn run(matches: &ArgMatches, started: Instant, environment: &Environment) -> Result<(), CliError> {
    match matches.subcommand() {
        Some((arguments::GENERATE, matches)) => generate::run(matches, started, environment),
        Some((arguments::serve::SERVE, matches)) => serve::run(matches, started, environment),
        Some((arguments::CHAT, matches)) => chat::run(matches, started, environment),
        Some((arguments::COMPLETE, matches)) => complete::run(matches, environment),
        Some((arguments::BENCH, matches)) => bench::run(matches, started, environment),
        Some((arguments::LOGITS, matches)) => logits::run(matches, started, environment),
        Some((arguments::EXPLAIN, matches)) => explain::run(matches, started, environment),
        Some((arguments::GRAPH, matches)) => graph::run(matches, started, environment),
        Some((arguments::SETTINGS, matches)) => settings::run(matches, environment),
        Some((arguments::COMPLETIONS, matches)) => completions::run(matches),
        // clap requires one of the commands that it was told of.
        _ => Err(CliError::Usage("no command was given; `allotrope --help` lists them".to_owned())),
    }
}
