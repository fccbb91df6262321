//! Writing: results to standard output, everything else to standard error.

use std::fmt;
use std::io::{self, Write};
use std::path::Path;

use serde::Serialize;
use tempfile::NamedTempFile;

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

/// Writes a JSON value to a file. It appears whole or not at all; one that exists is replaced.
pub(crate) fn write_json(path: &Path, value: &impl Serialize) -> Result<(), CliError> {
    let failed = |error: &io::Error| CliError::file("write", path, error);
    let target = std::path::absolute(path).map_err(|error| failed(&error))?;
    let mut text = serde_json::to_vec_pretty(value).map_err(|error| failed(&error.into()))?;
    text.push(b'\n');
    let mut file = temporary_beside(&target).map_err(|error| failed(&error))?;
    file.write_all(&text).and_then(|()| file.as_file().sync_all()).map_err(|error| failed(&error))?;
    file.persist(&target).map_err(|error| failed(&error.error))?;
    Ok(())
}

/// Finds out whether [`write_json`] will be able to write, so that a result is not lost after hours of work.
pub(crate) fn check_writable(path: &Path) -> Result<(), CliError> {
    let failed = |error: &io::Error| CliError::file("write", path, error);
    let target = std::path::absolute(path).map_err(|error| failed(&error))?;
    if target.is_dir() {
        return Err(failed(&io::Error::from(io::ErrorKind::IsADirectory)));
    }
    temporary_beside(&target).map(|_| ()).map_err(|error| failed(&error))
}

/// A temporary file in the folder of `target`, which is an absolute path, with the permissions that any new file gets there.
pub(crate) fn temporary_beside(target: &Path) -> io::Result<NamedTempFile> {
    let mut builder = tempfile::Builder::new();
    // Temporary files are private by default, but what becomes of this one is to be like any other.
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    builder.tempfile_in(target.parent().unwrap_or(target))
}
