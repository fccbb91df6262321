//! From the command line to the builder of a model.

use std::path::PathBuf;
use std::time::Instant;

use allotrope_config::environment::Environment;
use allotrope_config::{Options, command_line, load_from};
use allotrope_engine::{Llm, LlmBuilder};
use clap::ArgMatches;

use crate::arguments;
use crate::error::CliError;

/// The checkpoint's folder.
pub(crate) fn folder(matches: &ArgMatches) -> PathBuf {
    // The argument is required wherever it exists.
    matches.get_one::<PathBuf>(arguments::MODEL).cloned().unwrap_or_default()
}

/// What the command line, the environment and the settings files say.
pub(crate) fn options(matches: &ArgMatches, environment: &Environment) -> Result<Options, CliError> {
    let said = command_line::options_from(matches)?;
    let options = load_from(said, &command_line::sources_from(matches), environment)?;
    for warning in options.warnings() {
        tracing::warn!("{warning}");
    }
    Ok(options)
}

/// A builder for the model that the command line names, with `options`.
pub(crate) fn builder(matches: &ArgMatches, options: Options, started: Instant) -> LlmBuilder {
    Llm::builder(folder(matches)).options(options).started(started)
}

/// Loads the model that the command line names.
pub(crate) fn load(matches: &ArgMatches, started: Instant, environment: &Environment) -> Result<Llm, CliError> {
    Ok(builder(matches, options(matches, environment)?, started).build()?)
}
