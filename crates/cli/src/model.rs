//! From the command line to the builder of a model.

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;
use std::time::Instant;

use allotrope_config::environment::Environment;
use allotrope_config::{Options, command_line, load_from};
use allotrope_engine::{Llm, LlmBuilder};
use clap::parser::ValueSource;
use clap::{ArgAction, ArgMatches};

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

/// The flags of settings that were given, in the order in which they were given, for another process of this program.
pub(crate) fn setting_flags(matches: &ArgMatches) -> Vec<OsString> {
    let mut given = Vec::new();
    for argument in command_line::arguments() {
        let identifier = argument.get_id().as_str();
        let (Some(long), Some(ValueSource::CommandLine)) = (argument.get_long(), matches.value_source(identifier))
        else {
            continue;
        };
        let mut positions = matches.indices_of(identifier).into_iter().flatten();
        if matches!(argument.get_action(), ArgAction::SetTrue) {
            given.push((positions.next(), OsString::from(format!("--{long}"))));
            continue;
        }
        for values in matches.get_raw_occurrences(identifier).into_iter().flatten() {
            let values: Vec<&OsStr> = values.collect();
            // Every value has a position; the first one's is that of the flag.
            let position = positions.by_ref().take(values.len().max(1)).min();
            let mut flag = OsString::from(format!("--{long}="));
            flag.push(values.join(OsStr::new(",")));
            given.push((position, flag));
        }
    }
    given.sort_by_key(|(position, _)| *position);
    given.into_iter().map(|(_, flag)| flag).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

    use super::*;

    #[test]
    fn flags_of_settings_are_given_on_as_they_were_given() {
        let given = "allotrope generate --model m -O1 --enforce-eager=false -cc.pass_config.fuse_add_norm=false --max-tokens 3 \
                     --cudagraph-capture-sizes 1 2 --threads 2 --strict-environment -O3 x";
        let given = command_line::normalize(given.split_whitespace().map(OsString::from)).unwrap();
        let matches = arguments::command().try_get_matches_from(given).unwrap();
        let flags = setting_flags(matches.subcommand_matches(arguments::GENERATE).unwrap());
        let expected = [
            "--optimization-level=1",
            "--enforce-eager=false",
            "--compilation-config=pass_config.fuse_add_norm=false",
            "--cudagraph-capture-sizes=1,2",
            "--threads=2",
            "--strict-environment",
            "--optimization-level=3",
        ];
        assert_eq!(flags, expected);
        let again = ["allotrope", "generate", "--model", "m", "x"].into_iter().map(OsString::from).chain(flags);
        let again = arguments::command().try_get_matches_from(again).unwrap();
        let options = |matches: &ArgMatches| {
            command_line::options_from(matches.subcommand_matches(arguments::GENERATE).unwrap()).unwrap()
        };
        assert_eq!(format!("{:?}", options(&again)), format!("{:?}", options(&matches)));
    }
}
