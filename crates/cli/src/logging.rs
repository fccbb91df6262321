//! Log lines on standard error.

use std::io::{self, IsTerminal};

use allotrope_config::environment::{Environment, LOG_FILTER};
use tracing_subscriber::EnvFilter;

use crate::error::CliError;

/// Starts logging: warnings only, unless `-v` was given (once for what happens, twice for details, three times for
/// everything), or else the environment names a filter. A server also tells how it is doing.
pub(crate) fn start(verbose: u8, is_server: bool, environment: &Environment) -> Result<(), CliError> {
    let filter = match (verbose, environment.log_filter()) {
        (0, Some(filter)) => EnvFilter::try_new(&filter).map_err(|error| {
            CliError::Usage(format!("environment {LOG_FILTER}: `{filter}` is no log filter: {error}"))
        })?,
        (0, None) if is_server => EnvFilter::new("warn,allotrope_server=info"),
        (0, None) => EnvFilter::new("warn"),
        (1, _) => EnvFilter::new("info"),
        (2, _) => EnvFilter::new("debug"),
        (_, _) => EnvFilter::new("trace"),
    };
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal() && !environment.no_color())
        .with_target(false)
        .without_time()
        // It would tell of a broken standard error on standard error, and panic.
        .log_internal_errors(false)
        .try_init()
        .map_err(|error| CliError::Failure(format!("cannot start logging: {error}")))
}
