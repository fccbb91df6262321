//! The command line: its arguments, made from the declarations, and what was said with them.
//!
//! The dotted forms `-cc.KEY=VALUE` are no flags that clap can know, so the arguments pass through [`normalize`] first:
//!
//! ```
//! use allotrope_config::{OptimizationLevel, command_line};
//!
//! let arguments = ["program", "-O1", "-cc.pass_config.fuse_add_norm=false"].map(Into::into);
//! let matches = clap::Command::new("program")
//!     .args(command_line::arguments())
//!     .get_matches_from(command_line::normalize(arguments)?);
//! let options = command_line::options_from(&matches)?;
//! assert_eq!(options.get("optimization_level").map(|(value, _)| value.clone()), Some("O1".into()));
//! # Ok::<(), allotrope_config::SettingsError>(())
//! ```

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;

use clap::builder::{PossibleValue, TypedValueParser};
use clap::{Arg, ArgAction, ArgMatches};

use crate::declaration::{Declared, Flag};
use crate::document::{default_words, forms};
use crate::error::{Problem, SettingsError, quoted};
use crate::kind::Given;
use crate::load::Sources;
use crate::options::{Options, unknown_group};
use crate::settings::{all, find, is_within};
use crate::source::Source;
use crate::tree::Tree;

const COMPILATION_CONFIG: &str = "compilation-config";
const CONFIG: &str = "config";
const STRICT_ENVIRONMENT: &str = "strict-environment";
const COMPILATION: &str = "compilation.";

/// The arguments of all settings, grouped by help heading, for any command that loads a model.
///
/// Their identifiers are the settings' paths.
pub fn arguments() -> Vec<Arg> {
    let mut arguments: Vec<Arg> = all().iter().filter_map(|setting| argument(*setting)).collect();
    arguments.push(
        Arg::new(COMPILATION_CONFIG)
            .long(COMPILATION_CONFIG)
            .value_name("JSON|KEY=VALUE")
            .action(ArgAction::Append)
            .help("Compilation settings, as a JSON object or one by its key; short: -cc.KEY=VALUE, -cc JSON")
            .long_help(compilation_help())
            .help_heading(heading(COMPILATION)),
    );
    arguments.push(
        Arg::new(CONFIG)
            .long(CONFIG)
            .value_name("FILE")
            .value_parser(clap::value_parser!(PathBuf))
            .help("The settings file to read instead of the allotrope.toml nearest above the working directory")
            .help_heading(heading("")),
    );
    arguments.push(
        Arg::new(STRICT_ENVIRONMENT)
            .long(STRICT_ENVIRONMENT)
            .action(ArgAction::SetTrue)
            .help("Make an ALLOTROPE_* environment variable that names no setting an error")
            .help_heading(heading("")),
    );
    arguments
}

/// The heading of a setting's group: its first component, in words.
pub(crate) fn heading(path: &str) -> String {
    let Some((group, _)) = path.split_once('.') else {
        return "General settings".to_owned();
    };
    // The short names are abbreviations.
    let capitals = if group.len() <= 3 { group.len() } else { 1 };
    let (first, rest) = group.split_at_checked(capitals).unwrap_or((group, ""));
    format!("{}{rest} settings", first.to_ascii_uppercase())
}

fn argument(setting: &'static dyn Declared) -> Option<Arg> {
    let long = setting.flag().long()?;
    let (summary, long_help) = help(setting);
    let argument = Arg::new(setting.path())
        .long(long)
        .action(ArgAction::Append)
        .value_parser(SettingParser(setting))
        .value_name(setting.placeholder())
        .hide_possible_values(true)
        .help(summary)
        .long_help(long_help)
        .help_heading(heading(setting.path()));
    Some(match setting.flag() {
        Flag::Switch { .. } => argument.num_args(0..=1).require_equals(true).default_missing_value("true"),
        Flag::Values { .. } => argument.num_args(1..),
        Flag::Value { aliases, short, .. } => {
            let argument = argument.num_args(1).aliases(aliases.iter().copied());
            match short {
                Some(short) => argument.short(short),
                None => argument,
            }
        }
        Flag::Dotted => return None,
    })
}

/// The short and the long help of a setting.
fn help(setting: &dyn Declared) -> (String, String) {
    let (summary, details) = documentation(setting);
    let short = summary.trim_end_matches('.').to_owned();
    let mut long = format!("{summary}\n\n");
    if !details.is_empty() {
        long.push_str(&format!("{details}\n\n"));
    }
    long.push_str(&format!(
        "Values: {}. Default: {}.\nIn files: {}",
        setting.words(),
        default_words(setting),
        setting.path()
    ));
    (plain(&short), plain(&long))
}

/// The summary and the details of a setting's documentation.
pub(crate) fn documentation(setting: &dyn Declared) -> (String, String) {
    let lines: Vec<&str> = setting.documentation().iter().map(|line| line.trim()).collect();
    let summary: Vec<&str> = lines.iter().copied().take_while(|line| !line.is_empty()).collect();
    let details: Vec<&str> = lines.iter().copied().skip(summary.len()).filter(|line| !line.is_empty()).collect();
    (summary.join(" "), details.join(" "))
}

/// Text for a terminal: without the marks of Markdown.
fn plain(text: &str) -> String {
    text.replace('`', "")
}

fn compilation_help() -> String {
    let mut text = "Compilation settings, as a JSON object or one by its key. \
                    All forms merge, and of a key that is said twice the later value holds.\n\n\
                    -cc.KEY=VALUE, -cc.KEY VALUE, -cc.LIST+=VALUE, -cc JSON, --compilation-config JSON\n\nKeys:\n"
        .to_owned();
    for setting in all().iter().filter(|setting| setting.path().starts_with(COMPILATION)) {
        let key = setting.path().strip_prefix(COMPILATION).unwrap_or_default();
        let (summary, _) = documentation(*setting);
        text.push_str(&format!("  {key}: {}\n", plain(&summary)));
    }
    text
}

/// The group of settings that `--help=GROUP` asks about, if anything among the arguments does; clap itself knows only `--help`.
pub fn help_topic(arguments: &[OsString]) -> Option<String> {
    arguments
        .iter()
        .take_while(|argument| *argument != "--")
        .find_map(|argument| argument.to_str()?.strip_prefix("--help=").map(str::to_owned))
}

/// Everything about the settings of a group, such as `compilation`, or about one setting.
///
/// # Errors
///
/// If `group` is neither a group nor a setting.
pub fn group_help(group: &str) -> Result<String, SettingsError> {
    let mut text = String::new();
    for setting in all().iter().filter(|setting| is_within(setting.path(), group)) {
        let (summary, details) = documentation(*setting);
        text.push_str(&format!("{}\n  {summary}\n", setting.path()));
        if !details.is_empty() {
            text.push_str(&format!("  {details}\n"));
        }
        text.push_str(&format!(
            "  Values: {}\n  Default: {}\n  Command line: {}\n\n",
            setting.words(),
            default_words(*setting),
            forms(*setting),
        ));
    }
    if text.is_empty() {
        return Err(unknown_group(group, "--help"));
    }
    Ok(plain(text.trim_end()) + "\n")
}

/// Checks a value as soon as clap sees it, and offers the names of values to shell completion.
#[derive(Clone)]
struct SettingParser(&'static dyn Declared);

impl TypedValueParser for SettingParser {
    type Value = String;

    fn parse_ref(&self, command: &clap::Command, argument: Option<&Arg>, value: &OsStr) -> Result<String, clap::Error> {
        let setting = self.0;
        let check = move |text: &str| setting.canonical(Given::Text(text)).map(|_| text.to_owned());
        check.parse_ref(command, argument, value)
    }

    fn possible_values(&self) -> Option<Box<dyn Iterator<Item = PossibleValue> + '_>> {
        let names = self.0.names();
        (!names.is_empty()).then(|| Box::new(names.into_iter().map(PossibleValue::new)) as Box<dyn Iterator<Item = _>>)
    }
}

/// Rewrites the forms that clap cannot take into those that it can; everything else, and everything after `--`, is left alone.
///
/// - `-cc.KEY=VALUE`, `-cc.KEY VALUE`, `-cc.KEY+=VALUE`, `-cc.KEY+ VALUE`, the same with `--compilation-config` for `-cc`:
///   `--compilation-config=KEY=VALUE`;
/// - `-cc VALUE`, `-cc=VALUE`: `--compilation-config VALUE`;
/// - the long flags of settings written with underscores: with dashes;
/// - `--no-SWITCH`: `--SWITCH=false`.
///
/// # Errors
///
/// If a dotted form at the end has no value.
pub fn normalize(arguments: impl IntoIterator<Item = OsString>) -> Result<Vec<OsString>, SettingsError> {
    let mut arguments = arguments.into_iter();
    let mut normal = Vec::new();
    while let Some(argument) = arguments.next() {
        if argument == "--" {
            normal.push(argument);
            normal.extend(arguments.by_ref());
            break;
        }
        let Some(text) = argument.to_str() else {
            normal.push(argument);
            continue;
        };
        if text == "-cc" {
            normal.push("--compilation-config".into());
        } else if let Some(value) = text.strip_prefix("-cc=") {
            normal.push(format!("--compilation-config={value}").into());
        } else if let Some(dotted) = dotted(text) {
            let mut joined = OsString::from(format!("--compilation-config={dotted}"));
            if !dotted.contains('=') {
                let Some(value) = arguments.next() else {
                    return Err(Problem::Argument {
                        flag: quoted(text),
                        message: format!("a value is missing; write -cc.{dotted}=VALUE"),
                    }
                    .into());
                };
                joined.push("=");
                joined.push(value);
            }
            normal.push(joined);
        } else {
            let dashed = with_dashes(text).unwrap_or_else(|| text.to_owned());
            normal.push(switched_off(&dashed).unwrap_or(dashed).into());
        }
    }
    Ok(normal)
}

/// What follows the dot of `-cc.…`.
fn dotted(text: &str) -> Option<&str> {
    ["-cc.", "--compilation-config.", "--compilation_config."].iter().find_map(|prefix| text.strip_prefix(prefix))
}

/// A long flag of ours that was written with underscores, with dashes.
fn with_dashes(text: &str) -> Option<String> {
    let long = text.strip_prefix("--")?;
    let (name, value) = long.split_once('=').map_or((long, None), |(name, value)| (name, Some(value)));
    if !name.contains('_') {
        return None;
    }
    let dashed = name.replace('_', "-");
    let positive = dashed.strip_prefix("no-").unwrap_or(&dashed);
    let aliased = |flag: Flag| {
        matches!(flag, Flag::Value { aliases, .. } if aliases.contains(&dashed.as_str()))
            || matches!(flag, Flag::Switch { long } if long == positive)
    };
    let known = [COMPILATION_CONFIG, CONFIG, STRICT_ENVIRONMENT].contains(&dashed.as_str())
        || all().iter().any(|setting| setting.flag().long() == Some(dashed.as_str()) || aliased(setting.flag()));
    known.then(|| match value {
        Some(value) => format!("--{dashed}={value}"),
        None => format!("--{dashed}"),
    })
}

/// `--no-SWITCH`, as the switch itself says it.
fn switched_off(text: &str) -> Option<String> {
    let name = text.strip_prefix("--no-")?;
    let is_switch = |flag: Flag| matches!(flag, Flag::Switch { long } if long == name);
    all().iter().any(|setting| is_switch(setting.flag())).then(|| format!("--{name}=false"))
}

/// One thing that was said: its position among the arguments, what it is, and its values.
struct Occurrence {
    position: usize,
    setting: Option<&'static dyn Declared>,
    text: String,
}

/// What was said on the command line, in the order in which it was said.
///
/// Arguments that the command does not have count as not said, so that a command may take only some of [`arguments`].
///
/// # Errors
///
/// If a key is unknown, a value cannot be what it says, or JSON is malformed.
pub fn options_from(matches: &ArgMatches) -> Result<Options, SettingsError> {
    let mut occurrences = Vec::new();
    for setting in all() {
        collect(matches, setting.path(), Some(*setting), &mut occurrences);
    }
    collect(matches, COMPILATION_CONFIG, None, &mut occurrences);
    occurrences.sort_by_key(|occurrence| occurrence.position);
    let mut options = Options::new();
    for Occurrence { setting, text, .. } in occurrences {
        match setting {
            Some(setting) => {
                let flag = flag_of(setting);
                options.set(setting.path(), &text, Source::CommandLine { flag })?;
            }
            None => set_compilation(&mut options, &text)?,
        }
    }
    Ok(options)
}

fn flag_of(setting: &dyn Declared) -> String {
    match (setting.flag(), setting.flag().long()) {
        (Flag::Value { short: Some(short), .. }, _) => format!("-{short}"),
        (_, Some(long)) => format!("--{long}"),
        (_, None) => dotted_flag(setting.path()),
    }
}

fn dotted_flag(path: &str) -> String {
    format!("-cc.{}", path.strip_prefix(COMPILATION).unwrap_or(path))
}

fn collect(
    matches: &ArgMatches,
    identifier: &str,
    setting: Option<&'static dyn Declared>,
    occurrences: &mut Vec<Occurrence>,
) {
    let Ok(Some(given)) = matches.try_get_occurrences::<String>(identifier) else {
        return;
    };
    let mut positions = matches.indices_of(identifier).into_iter().flatten();
    for values in given {
        let values: Vec<&str> = values.map(String::as_str).collect();
        // Every value has a position; the first one's is that of the occurrence.
        let position = positions.by_ref().take(values.len().max(1)).min().unwrap_or(usize::MAX);
        let text = match values.as_slice() {
            [one] => (*one).to_owned(),
            several => several.join(","),
        };
        occurrences.push(Occurrence { position, setting, text });
    }
}

/// Says what one `--compilation-config` holds: a JSON object, `KEY=VALUE` or `KEY+=VALUE`.
fn set_compilation(options: &mut Options, text: &str) -> Result<(), SettingsError> {
    let wrong = |message: String| SettingsError::from(Problem::Argument { flag: "-cc".to_owned(), message });
    if text.trim_start().starts_with('{') {
        let tree: Tree = serde_json::from_str(text)
            .map_err(|error| wrong(format!("{} is not valid JSON: {error}", quoted(text))))?;
        let Tree::Table(entries) = tree else {
            return Err(wrong(format!("{} is no JSON object", quoted(text))));
        };
        return options.set_tree(COMPILATION, entries, &|path, _| Source::CommandLine { flag: dotted_flag(path) });
    }
    let Some((key, value)) = text.split_once('=') else {
        return Err(wrong(format!(
            "{} is neither a JSON object nor KEY=VALUE; write for example -cc.mode=none or -cc '{{\"mode\": \"none\"}}'",
            quoted(text)
        )));
    };
    let (key, appends) = key.strip_suffix('+').map_or((key, false), |key| (key, true));
    let path = format!("{COMPILATION}{}", key.trim().replace('-', "_"));
    let source = Source::CommandLine { flag: dotted_flag(&path) };
    if appends {
        return options.append(&path, value, source);
    }
    // A group may be given as an object: -cc.pass_config='{…}'.
    if find(&path).is_none()
        && let Ok(Tree::Table(entries)) = serde_json::from_str(value)
    {
        return options
            .set_tree(&format!("{path}."), entries, &|path, _| Source::CommandLine { flag: dotted_flag(path) });
    }
    options.set(&path, value, source)
}

/// Which files and variables the command line asks for.
pub fn sources_from(matches: &ArgMatches) -> Sources {
    let config_file = matches.try_get_one::<PathBuf>(CONFIG).ok().flatten().cloned();
    let strict_environment = matches.try_get_one::<bool>(STRICT_ENVIRONMENT).ok().flatten().copied();
    Sources { config_file, strict_environment: strict_environment.unwrap_or_default() }
}
