//! Where a value comes from, and a value that knows it.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::ops::Deref;
use std::path::PathBuf;

use crate::level::OptimizationLevel;

/// Where a value comes from, strongest first.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Source {
    /// A forced switch (`enforce_eager`) decided, whatever else was said.
    Forced,
    /// The command line, by this flag.
    CommandLine {
        /// The flag as a person would write it, without its value: `--threads`, `-cc.mode`.
        flag: String,
    },
    /// A program, by a call of a builder; as strong as the command line.
    Builder,
    /// An environment variable.
    Environment {
        /// The variable's name.
        variable: String,
    },
    /// A settings file.
    File {
        /// The file.
        path: PathBuf,
        /// The line, counted from 1.
        line: usize,
    },
    /// The default of an optimization level.
    Level(OptimizationLevel),
    /// A property of the model.
    Model,
    /// A property of the device.
    Device,
    /// The setting's own default.
    Default,
}

impl Source {
    /// Whether a person or a program said the value, so that it may not be changed.
    pub const fn is_explicit(&self) -> bool {
        matches!(self, Self::CommandLine { .. } | Self::Builder | Self::Environment { .. } | Self::File { .. })
    }

    /// The source's kind in one word, as in the JSON form of `explain`.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Forced => "forced",
            Self::CommandLine { .. } => "command line",
            Self::Builder => "builder",
            Self::Environment { .. } => "environment",
            Self::File { .. } => "file",
            Self::Level(_) => "level",
            Self::Model => "model",
            Self::Device => "device",
            Self::Default => "default",
        }
    }

    pub(crate) const KINDS: [&'static str; 9] =
        ["forced", "command line", "builder", "environment", "file", "level", "model", "device", "default"];
}

impl fmt::Display for Source {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::CommandLine { flag } => write!(formatter, "command line {flag}"),
            Self::Environment { variable } => write!(formatter, "environment {variable}"),
            Self::File { path, line } => write!(formatter, "{}:{line}", path.display()),
            Self::Level(level) => write!(formatter, "level {level}"),
            Self::Forced | Self::Builder | Self::Model | Self::Device | Self::Default => {
                formatter.write_str(self.kind())
            }
        }
    }
}

/// A value together with where it comes from. Equality and hashing look at the value alone.
#[derive(Clone, Debug)]
pub struct Resolved<T> {
    /// The value that holds.
    pub value: T,
    /// Where it comes from.
    pub source: Source,
    /// Why it is this value, where a rule or a limit decided.
    pub reason: Option<String>,
}

impl<T> Resolved<T> {
    /// The value that holds.
    pub const fn get(&self) -> &T {
        &self.value
    }
}

impl<T> Deref for Resolved<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

impl<T: PartialEq> PartialEq for Resolved<T> {
    fn eq(&self, other: &Self) -> bool {
        self.value == other.value
    }
}

impl<T: Eq> Eq for Resolved<T> {}

impl<T: Hash> Hash for Resolved<T> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.value.hash(state);
    }
}
