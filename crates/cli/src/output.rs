//! Writing: results to standard output, everything else to standard error.

use std::fmt;
use std::io::{self, Write};

use serde::Serialize;

use crate::error::CliError;

/// Writes a part of a result and shows it at once.
pub(crate) fn show(text: impl fmt::Display) -> Result<(), CliError> {
    let mut stdout = io::stdout().lock();
    write!(stdout, "{text}").and_then(|()| stdout.flush()).map_err(|error| CliError::stdout(&error))
}

/// Writes one JSON value on a line of its own.
pub(crate) fn show_json(value: &impl Serialize) -> Result<(), CliError> {
    let line = serde_json::to_string(value)
        .map_err(|error| CliError::Failure(format!("cannot write the result as JSON: {error}")))?;
    show(format_args!("{line}\n"))
}

/// Writes a line to standard error for the person at the terminal.
pub(crate) fn notice(text: impl fmt::Display) -> io::Result<()> {
    writeln!(io::stderr().lock(), "{text}")
}
