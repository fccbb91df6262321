//! `cargo xtask soak`: the soak of the server at its full length, in a release build.

use std::process::Command;

use crate::error::TaskError;
use crate::workspace;

/// How long to soak.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Requests, of which about a quarter is cancelled
    #[arg(long, value_name = "N", default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..))]
    requests: u32,
}

/// Runs the test that `cargo test` runs in short.
///
/// # Errors
/// If it fails.
pub(crate) fn run(options: &Options) -> Result<(), TaskError> {
    let arguments = ["test", "--release", "--package", "allotrope", "--test", "serve", "soak", "--", "--nocapture"];
    let command = format!("cargo {}", arguments.join(" "));
    let status = Command::new("cargo")
        .args(arguments)
        .env("ALLOTROPE_SOAK_REQUESTS", options.requests.to_string())
        .current_dir(workspace::root())
        .status()
        .map_err(|source| TaskError::Start { command: command.clone(), source })?;
    if status.success() { Ok(()) } else { Err(TaskError::Status { command, status }) }
}
