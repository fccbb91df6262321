//! Environment variables: the only place of the project that reads them.
//!
//! A setting's variable is `ALLOTROPE_` and its path in capitals, with two underscores for each dot:
//! `ALLOTROPE_COMPILATION__CUDAGRAPH_MODE`. No setting exists as a variable alone.

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;

use crate::error::{Problem, SettingsError, nearest, quoted};
use crate::options::Options;
use crate::settings::all;
use crate::source::Source;

const PREFIX: &str = "ALLOTROPE_";

/// How the variables of the CUDA emulator begin, which are none of ours.
const EMULATOR: &str = "ALLOTROPE_EMULATOR_";

/// The variable that filters log lines, in the syntax of `tracing`'s filters.
pub const LOG_FILTER: &str = "ALLOTROPE_LOG";

/// The variable with the key that a client shows to a server.
pub const API_KEY: &str = "ALLOTROPE_API_KEY";

/// The variable of the convention that asks programs for text without colour.
pub const NO_COLOR: &str = "NO_COLOR";

/// What settings are loaded from, apart from arguments: variables and the working directory.
#[derive(Clone, Debug, Default)]
pub struct Environment {
    variables: Vec<(OsString, OsString)>,
    working_directory: Option<PathBuf>,
}

impl Environment {
    /// That of this process.
    pub fn current() -> Self {
        Self { variables: std::env::vars_os().collect(), working_directory: std::env::current_dir().ok() }
    }

    /// One made up of `variables` and a working directory, for programs that bring their own and for tests.
    pub fn new(variables: impl IntoIterator<Item = (OsString, OsString)>, working_directory: Option<PathBuf>) -> Self {
        Self { variables: variables.into_iter().collect(), working_directory }
    }

    /// The filter for log lines, if there is one in [`LOG_FILTER`].
    pub fn log_filter(&self) -> Option<String> {
        self.variable(LOG_FILTER).map(|value| value.to_string_lossy().into_owned())
    }

    /// The key that a client shows to a server, if there is one in [`API_KEY`].
    pub fn api_key(&self) -> Option<String> {
        self.variable(API_KEY).map(|value| value.to_string_lossy().into_owned())
    }

    /// Whether [`NO_COLOR`] asks for text without colour.
    pub fn no_color(&self) -> bool {
        self.variable(NO_COLOR).is_some()
    }

    /// Which GPUs the CUDA driver is to show, as its own variable says; nothing if it may show all. Unlike in our
    /// variables, no text is a value too: it hides all of them.
    pub fn cuda_visible_devices(&self) -> Option<String> {
        let (_, value) = self.variables.iter().find(|(variable, _)| variable == "CUDA_VISIBLE_DEVICES")?;
        Some(value.to_string_lossy().into_owned())
    }

    pub(crate) fn working_directory(&self) -> Option<PathBuf> {
        self.working_directory.clone()
    }

    /// The folder of the user's configuration: `$XDG_CONFIG_HOME`, else `~/.config`.
    pub(crate) fn user_configuration(&self) -> Option<PathBuf> {
        self.user_folder("XDG_CONFIG_HOME", ".config")
    }

    /// The folder where kernels may be kept between starts: `allotrope/kernels` in `$XDG_CACHE_HOME`, else in `~/.cache`.
    pub fn kernel_cache(&self) -> Option<PathBuf> {
        let folder = self.user_folder("XDG_CACHE_HOME", ".cache")?;
        Some(folder.join("allotrope").join("kernels"))
    }

    /// A folder of the user's by the convention's variable, else by its place at home.
    fn user_folder(&self, variable: &str, at_home: &str) -> Option<PathBuf> {
        // The convention says that a relative path there is to be ignored.
        let named = self.variable(variable).map(PathBuf::from).filter(|path| path.is_absolute());
        named.or_else(|| self.variable("HOME").map(|home| PathBuf::from(home).join(at_home)))
    }

    fn variable(&self, name: &str) -> Option<&OsStr> {
        self.variables
            .iter()
            .find(|(variable, _)| variable == name)
            .map(|(_, value)| value.as_os_str())
            .filter(|value| !value.is_empty())
    }

    /// What the variables say.
    ///
    /// A variable that names no setting gives a warning, or under `strict` an error; those that Kubernetes injects for a service of
    /// our name are passed over.
    ///
    /// # Errors
    ///
    /// If a setting cannot have the value, or a value is not UTF-8.
    pub(crate) fn options(&self, strict: bool) -> Result<Options, SettingsError> {
        let mut options = Options::new();
        let mut variables: Vec<(String, &OsString)> = self
            .variables
            .iter()
            .map(|(name, value)| (name.to_string_lossy().into_owned(), value))
            .filter(|(name, _)| name.starts_with(PREFIX) && !name.starts_with(EMULATOR))
            .filter(|(name, _)| name != LOG_FILTER && name != API_KEY)
            .collect();
        // The system gives them in no order, and warnings should have one.
        variables.sort();
        for (name, value) in variables {
            let Some(setting) = all().iter().find(|setting| variable_of(setting.path()) == name) else {
                if is_injected_by_kubernetes(&name) {
                    continue;
                }
                let hint = unknown_hint(&name);
                if strict {
                    return Err(Problem::UnknownVariable { variable: name, hint }.into());
                }
                let shown = quoted(&name);
                options.warn(format!("the environment variable {shown} names no setting and is ignored{hint}"));
                continue;
            };
            let source = Source::Environment { variable: name };
            let Some(text) = value.to_str() else {
                return Err(Problem::InvalidValue {
                    setting: setting.path().to_owned(),
                    value: quoted(&value.to_string_lossy()),
                    origin: source,
                    expected: format!("it is not UTF-8; it must be {}", setting.words()),
                }
                .into());
            };
            options.set(setting.path(), text, source)?;
        }
        Ok(options)
    }
}

/// The variable of a setting.
pub(crate) fn variable_of(path: &str) -> String {
    format!("{PREFIX}{}", path.replace('.', "__").to_ascii_uppercase())
}

fn unknown_hint(name: &str) -> String {
    let variables: Vec<String> = all().iter().map(|setting| variable_of(setting.path())).collect();
    match nearest(name, variables.iter().map(String::as_str).chain([LOG_FILTER, API_KEY])) {
        Some(near) => format!("; did you mean {near}?"),
        None => String::new(),
    }
}

/// Whether Kubernetes injects a variable of this name for a service whose name begins with ours:
/// `X_SERVICE_HOST`, `X_SERVICE_PORT`, `X_SERVICE_PORT_NAME`, `X_PORT`, `X_PORT_80_TCP` and its `_PROTO`, `_PORT` and `_ADDR`.
fn is_injected_by_kubernetes(name: &str) -> bool {
    let of_service =
        name.ends_with("_SERVICE_HOST") || name.ends_with("_SERVICE_PORT") || name.contains("_SERVICE_PORT_");
    let of_port = name.rsplit_once("_PORT_").is_some_and(|(_, rest)| is_port_and_protocol(rest))
        // Two underscores stand for the dot of a setting's path, and no service has them.
        || name.strip_suffix("_PORT").is_some_and(|rest| !rest.ends_with('_'));
    of_service || of_port
}

/// Whether `rest` is `80_TCP`, or that with `_PROTO`, `_PORT` or `_ADDR`.
fn is_port_and_protocol(rest: &str) -> bool {
    let mut parts = rest.split('_');
    let port = parts.next().is_some_and(|port| port.parse::<u16>().is_ok());
    let protocol = parts.next().is_some_and(|protocol| ["TCP", "UDP", "SCTP"].contains(&protocol));
    let ending = parts.next().is_none_or(|ending| ["PROTO", "PORT", "ADDR"].contains(&ending));
    port && protocol && ending && parts.next().is_none()
}
