//! The error of this crate: what was wrong in a checkpoint, where, and what would be right.

use std::io;
use std::path::{Path, PathBuf};

/// Whose fault an error is, so that a program can choose its exit status and its advice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// What the user gave is wrong: the checkpoint, the messages or the token ids.
    Input,
    /// The machine refused: a file that may not be read, a mapping that failed.
    Environment,
}

/// Why a checkpoint, a tokenizer or a chat template cannot be used.
///
/// Every variant names the file; the message says what was found and what would be right.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ModelError {
    /// The operating system refused to open, read or map a file.
    #[error("{}: cannot {action}: {source}; {advice}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What was tried: "open", "read", "map".
        action: &'static str,
        /// What to do about it.
        advice: &'static str,
        /// The operating system's answer.
        source: io::Error,
    },
    /// A file that must be JSON is not, or is JSON of another form.
    #[error("{}: line {line}, column {column}: {problem}; expected {expected}", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// Line of the error, from 1.
        line: usize,
        /// Column of the error in bytes, from 1.
        column: usize,
        /// What the parser found.
        problem: String,
        /// What the file should hold.
        expected: &'static str,
    },
    /// A field of a JSON file has a value that cannot be right or is not supported.
    #[error("{}: `{field}` is {found}; expected {expected}", path.display())]
    Field {
        /// The file.
        path: PathBuf,
        /// The field, dotted where it is nested: `rope_scaling.factor`.
        field: String,
        /// The value, as JSON, shortened; or "missing".
        found: String,
        /// What would be right.
        expected: String,
    },
    /// A file as a whole is wrong: its kind, its size, its layout.
    #[error("{}: {problem}; expected {expected}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What was found.
        problem: String,
        /// What would be right.
        expected: String,
    },
    /// A tensor is missing, or its type, shape or value contradicts the configuration.
    #[error("{}: tensor `{tensor}` {found}; expected {expected}", path.display())]
    Tensor {
        /// The file that holds the tensor or should.
        path: PathBuf,
        /// The tensor's name.
        tensor: String,
        /// What was found.
        found: String,
        /// What would be right, with the configuration field that says so.
        expected: String,
    },
    /// The chat template does not parse, or failed while it ran.
    #[error("{}: chat template{}: {problem}", path.display(), line.map(|line| format!(", line {line}")).unwrap_or_default())]
    Template {
        /// The file that holds the template.
        path: PathBuf,
        /// Line within the template, from 1, where known.
        line: Option<usize>,
        /// What the template engine, or the template itself through `raise_exception`, said.
        problem: String,
    },
    /// Text could not be turned into token ids, or token ids into text.
    #[error("{}: {problem}", path.display())]
    Text {
        /// The tokenizer's file.
        path: PathBuf,
        /// What went wrong and with which input.
        problem: String,
    },
}

impl ModelError {
    /// Whose fault this error is.
    pub fn fault(&self) -> Fault {
        match self {
            ModelError::Io { source, .. } if source.kind() != io::ErrorKind::NotFound => Fault::Environment,
            _ => Fault::Input,
        }
    }

    pub(crate) fn io(path: &Path, action: &'static str, source: io::Error) -> Self {
        let advice = match source.kind() {
            io::ErrorKind::NotFound => "give a folder that holds a whole Hugging Face checkpoint",
            io::ErrorKind::PermissionDenied => "make it readable for this user",
            _ => "check the file and the disk it is on",
        };
        ModelError::Io { path: path.to_owned(), action, advice, source }
    }

    pub(crate) fn file(path: &Path, problem: impl Into<String>, expected: impl Into<String>) -> Self {
        ModelError::File { path: path.to_owned(), problem: problem.into(), expected: expected.into() }
    }

    pub(crate) fn tensor(path: &Path, tensor: &str, found: impl Into<String>, expected: impl Into<String>) -> Self {
        ModelError::Tensor {
            path: path.to_owned(),
            tensor: shorten(tensor),
            found: found.into(),
            expected: expected.into(),
        }
    }

    pub(crate) fn json(path: &Path, error: &serde_json::Error, expected: &'static str) -> Self {
        let text = error.to_string();
        // serde_json repeats the position at the end of its message; the position has fields of its own here.
        let problem = text.split(" at line ").next().unwrap_or(&text);
        ModelError::Json {
            path: path.to_owned(),
            line: error.line(),
            column: error.column(),
            problem: shorten(problem),
            expected,
        }
    }
}

/// Names and values come from the file and may be megabytes long or hold control characters; messages may not.
pub(crate) fn shorten(text: &str) -> String {
    const LONGEST: usize = 200;
    let mut short: String = text
        .chars()
        .take(LONGEST)
        .flat_map(|c| if c.is_control() { c.escape_default().collect::<Vec<_>>() } else { vec![c] })
        .collect();
    if text.chars().nth(LONGEST).is_some() {
        short.push('…');
    }
    short
}
