//! What was said: settings with their sources, all of them optional, in layers.

use std::collections::BTreeMap;

use serde_json::Value as Json;

use crate::declaration::Declared;
use crate::error::{Problem, SettingsError, nearest, quoted};
use crate::kind::Given;
use crate::level::OptimizationLevel;
use crate::settings::{self, all, find, is_within};
use crate::source::Source;

/// What was said of the settings. Nothing here is a default: a setting that nobody mentioned is absent.
///
/// One `Options` is one layer, or several that were merged with [`Options::over`].
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Options {
    said: BTreeMap<&'static str, Said>,
    warnings: Vec<String>,
}

/// One value that was said.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Said {
    /// The value in its written form, already checked.
    pub(crate) value: Json,
    /// Where it was said.
    pub(crate) source: Source,
    /// Whether it is to be appended to what a weaker layer says.
    appends: bool,
}

impl Options {
    /// Nothing said.
    pub fn new() -> Self {
        Self::default()
    }

    /// Says a setting by its dotted path, with the value as a person would write it on the command line. A later call wins.
    ///
    /// # Errors
    ///
    /// If there is no such setting, or it cannot have the value; the message names `source`.
    pub fn set(&mut self, path: &str, value: &str, source: Source) -> Result<(), SettingsError> {
        self.say(path, Given::Text(value), source, false)
    }

    /// Says a setting by its dotted path, with a JSON value.
    ///
    /// # Errors
    ///
    /// As [`Options::set`].
    pub fn set_json(&mut self, path: &str, value: &Json, source: Source) -> Result<(), SettingsError> {
        self.say(path, Given::Json(value), source, false)
    }

    /// Appends to a setting that is a list: to what was said of it so far, and by weaker layers.
    ///
    /// # Errors
    ///
    /// As [`Options::set`], and if the setting is no list.
    pub fn append(&mut self, path: &str, value: &str, source: Source) -> Result<(), SettingsError> {
        self.say(path, Given::Text(value), source, true)
    }

    /// Says the optimization level. A later call wins.
    pub fn set_optimization_level(&mut self, level: OptimizationLevel, source: Source) {
        let value = Json::String(level.to_string());
        self.insert(&settings::OPTIMIZATION_LEVEL, Said { value, source, appends: false });
    }

    /// The layers of `self` over those of `weaker`: where both say a setting, `self` wins.
    #[must_use]
    pub fn over(mut self, weaker: Self) -> Self {
        for (path, below) in weaker.said {
            let said = match self.said.remove(path) {
                None => below,
                Some(said) if said.appends => {
                    Said { value: joined(path, &below.value, &said.value), source: said.source, appends: below.appends }
                }
                Some(said) => said,
            };
            self.said.insert(path, said);
        }
        self.warnings.extend(weaker.warnings);
        self
    }

    /// What should be told to the person: things said twice, former names, unknown environment variables.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Whether nothing was said.
    pub fn is_empty(&self) -> bool {
        self.said.is_empty()
    }

    /// The value that was said of a setting, in its written form, and where; `None` if nobody said it.
    pub fn get(&self, path: &str) -> Option<(&Json, &Source)> {
        self.said(path).map(|said| (&said.value, &said.source))
    }

    pub(crate) fn said(&self, path: &str) -> Option<&Said> {
        self.said.get(path)
    }

    pub(crate) fn warn(&mut self, warning: String) {
        if !self.warnings.contains(&warning) {
            self.warnings.push(warning);
        }
    }

    fn say(&mut self, path: &str, given: Given<'_>, source: Source, appends: bool) -> Result<(), SettingsError> {
        let setting = self.setting(path, &source)?;
        let invalid = |expected: String| {
            SettingsError::from(Problem::InvalidValue {
                setting: setting.path().to_owned(),
                value: given.shown(),
                origin: source.clone(),
                expected,
            })
        };
        let value = setting.canonical(given).map_err(invalid)?;
        if appends && !value.is_array() {
            return Err(invalid(format!(
                "it is no list, so nothing can be appended to it; write `{}=…`",
                setting.path()
            )));
        }
        let said = match self.said.get(setting.path()) {
            Some(earlier) if appends => {
                Said { value: joined(setting.path(), &earlier.value, &value), source, appends: earlier.appends }
            }
            _ => Said { value, source, appends },
        };
        if !appends {
            self.warn_if_repeated(setting, &said);
        }
        self.insert(setting, said);
        Ok(())
    }

    fn insert(&mut self, setting: &dyn Declared, said: Said) {
        self.said.insert(setting.path(), said);
    }

    fn warn_if_repeated(&mut self, setting: &dyn Declared, said: &Said) {
        if let Some(earlier) = self.said.get(setting.path())
            && let (Source::CommandLine { flag: first }, Source::CommandLine { flag: second }) =
                (&earlier.source, &said.source)
        {
            let warning = format!(
                "`{}` is said twice on the command line: {first} {} is ignored, {second} {} holds",
                setting.path(),
                setting.show(&earlier.value),
                setting.show(&said.value),
            );
            self.warn(warning);
        }
    }

    /// The setting of a path, or an error that names the nearest one.
    fn setting(&mut self, path: &str, source: &Source) -> Result<&'static dyn Declared, SettingsError> {
        if let Some(setting) = find(path) {
            return Ok(setting);
        }
        let former = all().iter().copied().find(|setting| setting.former_paths().contains(&path));
        if let Some(setting) = former {
            self.warn(format!("{source}: `{path}` is now called `{}`", setting.path()));
            return Ok(setting);
        }
        Err(unknown(path, source.clone()))
    }
}

/// Whether a path is that of a group of settings.
pub(crate) fn is_group(path: &str) -> bool {
    find(path).is_none() && all().iter().any(|setting| is_within(setting.path(), path))
}

/// The paths of all groups of settings, in the order of the declarations.
pub(crate) fn groups() -> Vec<&'static str> {
    let mut groups = Vec::new();
    for setting in all() {
        for (end, _) in setting.path().match_indices('.') {
            if let Some(group) = setting.path().get(..end)
                && !groups.contains(&group)
            {
                groups.push(group);
            }
        }
    }
    groups
}

/// The error for a flag's value that names neither a group nor a setting.
pub(crate) fn unknown_group(given: &str, flag: &str) -> SettingsError {
    let groups = groups();
    let valid = groups.iter().copied().chain(all().iter().map(|setting| setting.path()));
    let meant = nearest(given, valid).map_or_else(String::new, |name| format!("; did you mean `{name}`?"));
    let message = format!(
        "there is no group of settings {}{meant} (groups: {}; the name of a setting is good too)",
        quoted(given),
        groups.join(", ")
    );
    Problem::Argument { flag: flag.to_owned(), message }.into()
}

/// The error for a path that is no setting's.
pub(crate) fn unknown(path: &str, origin: Source) -> SettingsError {
    let hint = if is_group(path) {
        format!("; it is a group of settings: write `{path}.NAME`")
    } else {
        match nearest(path, all().iter().map(|setting| setting.path())) {
            Some(name) => format!("; did you mean `{name}`?"),
            None => "; `allotrope explain` lists all settings".to_owned(),
        }
    };
    let shown = quoted(path);
    let setting = shown.trim_matches('`').to_owned();
    Problem::UnknownSetting { setting, origin, hint }.into()
}

/// The first list followed by the second, in the written form of the setting.
fn joined(path: &str, first: &Json, second: &Json) -> Json {
    let items = [first, second].into_iter().filter_map(Json::as_array).flatten().cloned().collect();
    let list = Json::Array(items);
    find(path).and_then(|setting| setting.canonical(Given::Json(&list)).ok()).unwrap_or(list)
}
