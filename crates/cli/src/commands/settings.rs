//! `allotrope settings`: all settings where no model is known, a file to begin with, and JSON Schemas.

use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};

use allotrope_config::environment::Environment;
use allotrope_config::{Format, Options, explain, explanation_schema, initial_file, resolve_with, schema};
use clap::ArgMatches;

use crate::error::CliError;
use crate::{arguments, output};

pub(super) fn run(matches: &ArgMatches, environment: &Environment) -> Result<(), CliError> {
    if let Some(path) = matches.get_one::<PathBuf>(arguments::INIT) {
        return init(path);
    }
    if let Some(of) = matches.get_one::<String>(arguments::SCHEMA) {
        let schema = if of == arguments::OF_EXPLANATIONS { explanation_schema() } else { schema() };
        return output::show(format_args!("{schema:#}\n"));
    }
    let settings = resolve_with(&Options::new(), None, None)?;
    let color = io::stdout().is_terminal() && !environment.no_color();
    output::show(explain(&settings, &[], None, &Format::Text { color })?)
}

/// Writes the file. It appears whole or not at all, and never in the place of another.
fn init(path: &Path) -> Result<(), CliError> {
    let failed = |error: &io::Error| CliError::file("write", path, error);
    let target = std::path::absolute(path).map_err(|error| failed(&error))?;
    let mut file = output::temporary_beside(&target).map_err(|error| failed(&error))?;
    file.write_all(initial_file().as_bytes())
        .and_then(|()| file.as_file().sync_all())
        .map_err(|error| failed(&error))?;
    file.persist_noclobber(&target).map_err(|error| match error.error.kind() {
        io::ErrorKind::AlreadyExists => CliError::Failure(format!(
            "{} exists and is left as it is; name another file with --{} PATH",
            path.display(),
            arguments::INIT
        )),
        _ => failed(&error.error),
    })?;
    // The file is there, whether or not anybody reads that it is.
    let _ = output::notice(format_args!("wrote {}", path.display()));
    Ok(())
}
