//! The `allotrope` command: text from a checkpoint or a server, a conversation, benchmarks, logits to compare with, the plan of
//! a run, and settings.
//!
//! Results go to standard output; logs, reports and errors to standard error. The exit status is 0 for success, 1 for
//! a failure and 2 for a command line or setting that cannot be.

mod arguments;
mod client;
mod commands;
mod error;
mod input;
mod logging;
mod model;
mod output;
mod prompts;
mod reader;
mod report;
mod sampling;
mod speed;

use std::ffi::OsString;
use std::process::ExitCode;
use std::time::Instant;

use allotrope_config::command_line;
use allotrope_config::environment::Environment;

use crate::error::CliError;

fn main() -> ExitCode {
    let started = Instant::now();
    match run(started) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => error.exit(),
    }
}

fn run(started: Instant) -> Result<(), CliError> {
    let given: Vec<OsString> = std::env::args_os().collect();
    if let Some(group) = command_line::help_topic(&given) {
        return output::show(command_line::group_help(&group)?);
    }
    let matches = arguments::command().try_get_matches_from(command_line::normalize(given)?)?;
    let environment = Environment::current();
    let is_server = matches.subcommand_name() == Some(arguments::serve::SERVE);
    logging::start(matches.get_count(arguments::VERBOSE), is_server, &environment)?;
    commands::run(&matches, started, &environment)
}
