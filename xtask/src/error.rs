//! Why a task failed, in words for the developer who ran it.

use std::path::{Path, PathBuf};

/// Why a task failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TaskError {
    /// A file or folder could not be read or written.
    #[error("{}: {source}", .path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A program could not be started.
    #[error("can't start `{command}`: {source}")]
    Start {
        /// The command line.
        command: String,
        /// Why.
        source: std::io::Error,
    },
    /// A program ended with a failure.
    #[error("`{command}` failed ({status})")]
    Status {
        /// The command line.
        command: String,
        /// How it ended.
        status: std::process::ExitStatus,
    },
    /// Anything else, said in full.
    #[error("{0}")]
    Message(String),
}

impl TaskError {
    /// For `map_err` on the result of reading or writing `path`.
    pub(crate) fn file(path: &Path) -> impl FnOnce(std::io::Error) -> TaskError + '_ {
        move |source| TaskError::File { path: path.to_path_buf(), source }
    }
}
