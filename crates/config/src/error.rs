//! What can be wrong with what was said.

use std::path::PathBuf;

use crate::source::Source;

/// Why settings could not be read or resolved. The message names the setting, where it was said, what is wrong with it and
/// what to write instead.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct SettingsError(Box<Problem>);

impl SettingsError {
    /// What is wrong, to be matched on.
    pub fn problem(&self) -> &Problem {
        &self.0
    }

    /// Whether the program should exit with status 2: what was said is wrong, as opposed to a failure while reading it.
    pub fn is_usage(&self) -> bool {
        !matches!(*self.0, Problem::Unreadable { .. } | Problem::NoRoom { .. } | Problem::Internal { .. })
    }
}

impl From<Problem> for SettingsError {
    fn from(problem: Problem) -> Self {
        Self(Box::new(problem))
    }
}

/// What is wrong with what was said.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Problem {
    /// There is no such setting.
    #[error("{origin}: there is no setting `{setting}`{hint}")]
    UnknownSetting {
        /// The path that was given.
        setting: String,
        /// Where it was given.
        origin: Source,
        /// What to write instead, beginning with `; `, or nothing.
        hint: String,
    },
    /// The value is none that the setting can have.
    #[error("{origin}: `{setting}` cannot be {value}: {expected}")]
    InvalidValue {
        /// The setting's path.
        setting: String,
        /// The value that was given, as text, shortened.
        value: String,
        /// Where it was given.
        origin: Source,
        /// What is wrong with it and what would be right.
        expected: String,
    },
    /// The value is valid, but cannot be had here or beside another one.
    #[error("{origin}: `{setting}` cannot be {value}: {because}; {instead}")]
    Impossible {
        /// The setting's path.
        setting: String,
        /// The value that was asked for.
        value: String,
        /// Where it was asked for.
        origin: Source,
        /// What stands against it, with its own source where it is a setting.
        because: String,
        /// What to write instead.
        instead: String,
    },
    /// The model does not fit the device's own memory, and nobody's setting is to blame: another device may run it.
    #[error("{model} does not fit {device}: {because}; {instead}")]
    NoRoom {
        /// The model's name.
        model: String,
        /// The device's name.
        device: String,
        /// What takes how much of what is free.
        because: String,
        /// What to do to have it fit.
        instead: String,
    },
    /// A settings file is not valid TOML, or is not something that a settings file may be.
    #[error("{path}:{line}: {message}", path = path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The line, counted from 1.
        line: usize,
        /// What is wrong and what would be right.
        message: String,
    },
    /// A settings file could not be read.
    #[error("cannot read the settings file {path}: {message}", path = path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system said.
        message: String,
    },
    /// An argument is not something that the command line takes.
    #[error("{flag}: {message}")]
    Argument {
        /// The flag.
        flag: String,
        /// What is wrong and what would be right.
        message: String,
    },
    /// An `ALLOTROPE_*` variable that names no setting, under `--strict-environment`.
    #[error("the environment variable {variable} names no setting{hint}")]
    UnknownVariable {
        /// The variable's name.
        variable: String,
        /// What to write instead, beginning with `; `, or nothing.
        hint: String,
    },
    /// A defect of the declarations: not the user's fault.
    #[error("internal error in the declaration of `{setting}`: {message}; please report it")]
    Internal {
        /// The setting's path.
        setting: String,
        /// What is wrong.
        message: String,
    },
}

impl Problem {
    /// A defect of the declaration of the setting at `path`.
    pub(crate) fn internal(path: &str, message: &str) -> SettingsError {
        Self::Internal { setting: path.to_owned(), message: message.to_owned() }.into()
    }
}

/// Shortens hostile text for a message: at most 80 characters, in backquotes, without control characters.
pub(crate) fn quoted(text: &str) -> String {
    const MOST: usize = 80;
    let mut shown: String =
        text.chars().take(MOST).map(|character| if character.is_control() { '\u{fffd}' } else { character }).collect();
    if text.chars().nth(MOST).is_some() {
        shown.push('…');
    }
    format!("`{shown}`")
}

/// The valid name nearest to `given`, where one is near enough to be what was meant.
pub(crate) fn nearest<'a>(given: &str, valid: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    // The distance is quadratic in the length, and no valid name is nearly as long.
    if given.len() > 200 {
        return None;
    }
    let given = given.to_ascii_lowercase();
    let within = (given.chars().count() / 3).max(2);
    valid
        .map(|name| {
            let lower = name.to_ascii_lowercase();
            let distance = strsim::damerau_levenshtein(&given, &lower);
            // The last component alone counts too: `fuse_add_norm` means `compilation.pass_config.fuse_add_norm`.
            let last = lower.rsplit('.').next().unwrap_or(&lower);
            let given_last = given.rsplit('.').next().unwrap_or(&given);
            let by_last = strsim::damerau_levenshtein(given_last, last) + 1;
            (distance.min(by_last), name)
        })
        .filter(|(distance, _)| *distance <= within)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, name)| name)
}
