//! All layers together: command line or builder, environment, project file, user file.

use std::path::PathBuf;

use crate::environment::Environment;
use crate::error::SettingsError;
use crate::file;
use crate::options::Options;

/// The name of a project's settings file.
pub const PROJECT_FILE: &str = "allotrope.toml";

/// Which sources are read, besides what the command line or a program says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sources {
    /// A settings file to read instead of the project's.
    pub config_file: Option<PathBuf>,
    /// Whether an `ALLOTROPE_*` variable that names no setting is an error.
    pub strict_environment: bool,
}

/// Puts the environment and the settings files of this process under what was said on the command line or by a program.
///
/// Strongest first: `said`; `ALLOTROPE_*` variables; the file of `sources`, or else the `allotrope.toml` nearest above the working
/// directory; the user's `~/.config/allotrope/config.toml`.
///
/// # Errors
///
/// If a variable or file says something wrong, or a file that is there cannot be read.
pub fn load(said: Options, sources: &Sources) -> Result<Options, SettingsError> {
    load_from(said, sources, &Environment::current())
}

/// As [`load`], for a given environment.
///
/// # Errors
///
/// As [`load`].
pub fn load_from(said: Options, sources: &Sources, environment: &Environment) -> Result<Options, SettingsError> {
    let mut options = said.over(environment.options(sources.strict_environment)?);
    let project = match &sources.config_file {
        Some(file) => Some(file.clone()),
        None => environment.working_directory().and_then(|directory| file::find_upward(&directory, PROJECT_FILE)),
    };
    if let Some(project) = project {
        options = options.over(file::read(&project)?);
    }
    let user = environment
        .user_configuration()
        .map(|folder| folder.join("allotrope").join("config.toml"))
        .filter(|file| file.exists());
    if let Some(user) = user {
        options = options.over(file::read(&user)?);
    }
    Ok(options)
}
