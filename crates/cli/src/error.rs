//! How the program fails: one message on standard error, and an exit status that says whose move it is.

use std::io;
use std::path::Path;
use std::process::ExitCode;

use allotrope_config::SettingsError;
use allotrope_engine::{EngineError, SamplingError};

/// Why the program ends without having done what was asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CliError {
    /// Nothing that could be typed this way can work: exit status 2.
    #[error("{0}")]
    Usage(String),
    /// A failure while doing what was asked: exit status 1.
    #[error("{0}")]
    Failure(String),
    /// What clap has to say: its own errors, and the texts of `--help` and `--version`.
    #[error(transparent)]
    Arguments(#[from] clap::Error),
    /// Whoever reads our standard output has gone, which is no failure: `allotrope … | head -1`.
    #[error("standard output was closed")]
    OutputClosed,
}

impl CliError {
    /// Prints the message, if there is one to print, and gives the exit status.
    pub(crate) fn exit(self) -> ExitCode {
        match self {
            CliError::OutputClosed => ExitCode::SUCCESS,
            CliError::Arguments(error) => {
                // If nobody listens any more, there is nobody to tell.
                let _ = error.print();
                u8::try_from(error.exit_code()).map_or(ExitCode::FAILURE, ExitCode::from)
            }
            CliError::Failure(_) => self.print(ExitCode::FAILURE),
            CliError::Usage(_) => self.print(ExitCode::from(2)),
        }
    }

    fn print(&self, status: ExitCode) -> ExitCode {
        // If standard error is closed too, the exit status still says it.
        let _ = crate::output::notice(format_args!("error: {self}"));
        status
    }

    /// The same error with words before its message that say where it happened.
    pub(crate) fn within(self, place: impl std::fmt::Display) -> Self {
        match self {
            CliError::Usage(message) => CliError::Usage(format!("{place}: {message}")),
            CliError::Failure(message) => CliError::Failure(format!("{place}: {message}")),
            CliError::Arguments(_) | CliError::OutputClosed => self,
        }
    }

    /// The same error as a failure: what was typed is right, but what it names is not.
    pub(crate) fn into_failure(self) -> Self {
        match self {
            CliError::Usage(message) => CliError::Failure(message),
            other => other,
        }
    }

    /// A file that could not be read or written.
    pub(crate) fn file(action: &str, path: &Path, error: &io::Error) -> Self {
        CliError::Failure(format!("cannot {action} {}: {error}", path.display()))
    }

    /// A failed write to standard output.
    pub(crate) fn stdout(error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => CliError::OutputClosed,
            _ => CliError::Failure(format!("cannot write to standard output: {error}")),
        }
    }
}

impl From<EngineError> for CliError {
    fn from(error: EngineError) -> Self {
        sorted(error.is_usage(), &error)
    }
}

impl From<SettingsError> for CliError {
    fn from(error: SettingsError) -> Self {
        sorted(error.is_usage(), &error)
    }
}

impl From<SamplingError> for CliError {
    fn from(error: SamplingError) -> Self {
        sorted(matches!(error, SamplingError::Parameter { .. }), &error)
    }
}

fn sorted(is_usage: bool, error: &dyn std::error::Error) -> CliError {
    let message = chain(error);
    if is_usage { CliError::Usage(message) } else { CliError::Failure(message) }
}

/// The message of an error and of its causes, joined by colons. A cause that its error has already put into its own
/// message is not repeated.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut message = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let text = error.to_string();
        if !message.contains(&text) {
            message.push_str(": ");
            message.push_str(&text);
        }
        cause = error.source();
    }
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{message}")]
    struct Link {
        message: &'static str,
        source: Option<Box<Link>>,
    }

    #[test]
    fn causes_are_joined_and_none_is_told_twice() {
        let disk = Link { message: "disk full", source: None };
        let write = Link { message: "cannot write x: disk full", source: Some(Box::new(disk)) };
        let save = Link { message: "saving the answer", source: Some(Box::new(write)) };
        assert_eq!(chain(&save), "saving the answer: cannot write x: disk full");
    }

    #[test]
    fn a_broken_pipe_is_told_from_other_failures_of_standard_output() {
        let closed = CliError::stdout(&io::Error::from(io::ErrorKind::BrokenPipe));
        assert!(matches!(closed, CliError::OutputClosed));
        let full = CliError::stdout(&io::Error::from(io::ErrorKind::StorageFull));
        assert!(matches!(full, CliError::Failure(_)));
    }

    #[test]
    fn a_place_goes_before_the_message() {
        let error = CliError::Failure("token 9 is unknown".to_owned()).within("a.jsonl:3");
        assert_eq!(error.to_string(), "a.jsonl:3: token 9 is unknown");
    }
}
