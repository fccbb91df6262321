//! Text made from the declarations: `docs/levels.md`, `docs/settings.md`, and settings files.

use std::fmt::Write as _;

use serde_json::Value as Json;

use crate::command_line::{documentation, heading};
use crate::declaration::{Declared, Flag};
use crate::environment::{LOG_FILTER, NO_COLOR, variable_of};
use crate::examples::examples;
use crate::level::OptimizationLevel;
use crate::options::Options;
use crate::resolve::resolve_with;
use crate::settings::{Row, Settings, all};

const GENERATED: &str = "<!-- Generated from crates/config by `cargo xtask docs`; do not edit. -->";

/// The text of `docs/levels.md`: what each level sets.
pub fn levels_markdown() -> String {
    let mut text = format!(
        "# Optimization levels\n\n{GENERATED}\n\n\
         A level trades startup time for speed. It is only a table of defaults: what is set explicitly is never overwritten by \
         a level. `-O2` is the default level.\n\n\
         | setting | O0 | O1 | O2 | O3 |\n|---|---|---|---|---|\n"
    );
    for setting in all() {
        let cells: Vec<String> = OptimizationLevel::ALL
            .iter()
            .filter_map(|level| Some(cell(*setting, setting.level_words(*level)?)))
            .collect();
        if !cells.is_empty() {
            let _ = writeln!(text, "| `{}` | {} |", setting.path(), cells.join(" | "));
        }
    }
    text.push_str(
        "\nA default that the device or the model cannot have is lowered, and `allotrope explain` says why. \
         An explicit value that cannot be had is an error. What each setting does: [settings.md](settings.md).\n",
    );
    text
}

/// A cell as it is read in a table: switches as on and off, names as code.
fn cell(setting: &dyn Declared, words: String) -> String {
    match words.as_str() {
        "true" => "on".to_owned(),
        "false" => "off".to_owned(),
        name if setting.names().contains(&name) => format!("`{name}`"),
        _ => words,
    }
}

/// The text of `docs/settings.md`: every setting, how it is said, and how to see what holds.
pub fn settings_markdown() -> String {
    let mut text = format!(
        "# Settings\n\n{GENERATED}\n\n\
         Where a value comes from, strongest first: a forced switch (`--enforce-eager`); the command line, or in a program the \
         builder; `ALLOTROPE_*` environment variables; the file of `--config`, or else the `allotrope.toml` nearest above the \
         working directory; the user's `~/.config/allotrope/config.toml`; the optimization level ([levels.md](levels.md)); \
         the setting's own default.\n\n\
         | to | run |\n|---|---|\n\
         | see what would hold for a model, where each value comes from and why | `allotrope explain --model DIR` |\n\
         | list all settings with their defaults | `allotrope settings` |\n\
         | read everything about one group of settings | `allotrope generate --help=compilation` |\n\
         | begin a settings file, with every setting as a comment | `allotrope settings --init` |\n\
         | check settings files in an editor: their JSON Schema | `allotrope settings --schema` |\n\
         | read `explain --format json` in a program: its JSON Schema | `allotrope settings --schema explain` |\n\
         | complete flags and their values in a shell | `allotrope completions bash`, or another shell |\n\n\
         What the help and the messages look like is [shown at the end](#what-it-looks-like).\n"
    );
    let mut last = String::new();
    for setting in all() {
        let group = heading(setting.path());
        if group != last {
            let _ = write!(text, "\n## {group}\n");
            last = group;
        }
        section(&mut text, *setting);
    }
    text.push_str(&format!(
        "\n## Other environment variables\n\n\
         | variable | meaning |\n|---|---|\n\
         | `{LOG_FILTER}` | which log lines are written to stderr, as a filter of `tracing`: `info`, `allotrope_engine=debug` |\n\
         | `{NO_COLOR}` | if not empty, no colour is written |\n"
    ));
    text.push_str(&examples());
    text
}

/// The default in words: the rule, or the row of the level table.
pub(crate) fn default_words(setting: &dyn Declared) -> String {
    setting.default_words().unwrap_or_else(|| {
        let cells: Vec<String> = OptimizationLevel::ALL
            .iter()
            .filter_map(|level| Some(format!("{level} {}", cell(setting, setting.level_words(*level)?))))
            .collect();
        cells.join(", ")
    })
}

fn section(text: &mut String, setting: &dyn Declared) {
    let (summary, details) = documentation(setting);
    let _ = write!(text, "\n### `{}`\n\n{summary}", setting.path());
    if !details.is_empty() {
        let _ = write!(text, " {details}");
    }
    let default = default_words(setting);
    let _ = write!(
        text,
        "\n\n- Values: {}\n- Default: {default}\n- Command line: {}\n- Environment: `{}`\n",
        setting.words(),
        forms(setting),
        variable_of(setting.path()),
    );
    if !setting.former_paths().is_empty() {
        let former: Vec<String> = setting.former_paths().iter().map(|path| format!("`{path}`")).collect();
        let _ = writeln!(text, "- Also understood, with a warning: {}", former.join(", "));
    }
}

/// How the command line says a setting.
pub(crate) fn forms(setting: &dyn Declared) -> String {
    let value = setting.placeholder();
    let mut forms = Vec::new();
    match setting.flag() {
        Flag::Dotted => {}
        Flag::Switch { long } => forms.push(format!("`--{long}`, `--no-{long}`")),
        Flag::Values { long } => forms.push(format!("`--{long} N N …`")),
        Flag::Value { long, short, .. } => {
            if let Some(short) = short {
                forms.push(format!("`-{short} {value}`"));
            }
            forms.push(format!("`--{long} {value}`"));
        }
    }
    if let Some(key) = setting.path().strip_prefix("compilation.") {
        forms.push(format!("`-cc.{key}={value}`"));
    }
    forms.join(", ")
}

/// A settings file in which every setting stands as a comment, with its documentation, for a person to start from.
pub fn initial_file() -> String {
    let mut text =
        "# Settings of Allotrope. Every line that is commented out shows a setting and an example of its value;\n\
                    # `allotrope explain` shows what holds and why.\n"
            .to_owned();
    // Assumed facts and no options: every value that this shows is a default of O2.
    let Ok(settings) = resolve_with(&Options::new(), None, None) else {
        return text;
    };
    let mut group = "";
    for (row, setting) in settings.rows().iter().zip(all()) {
        let (prefix, key) = row.setting.rsplit_once('.').unwrap_or(("", row.setting));
        if prefix != group {
            let _ = write!(text, "\n[{prefix}]\n");
            group = prefix;
        }
        let (summary, _) = documentation(*setting);
        let default = default_words(*setting);
        let _ = write!(
            text,
            "\n# {summary}\n# Values: {}. Default: {default}.\n# {key} = {}\n",
            setting.words(),
            toml_of(row)
        );
    }
    text.replace('`', "")
}

impl Settings {
    /// The settings as a settings file, which resolves to equal settings for the same model and device.
    pub fn to_toml(&self) -> String {
        let mut text = String::new();
        let mut group = "";
        for row in self.rows() {
            let (prefix, key) = row.setting.rsplit_once('.').unwrap_or(("", row.setting));
            if prefix != group {
                let _ = write!(text, "\n[{prefix}]\n");
                group = prefix;
            }
            let _ = writeln!(text, "{key} = {}", toml_of(&row));
        }
        text
    }
}

/// The value of a setting in TOML's own syntax. It has no null: a setting without a value has the word for that.
fn toml_of(row: &Row) -> String {
    if row.value.is_null() { toml_value(&Json::String(row.shown.clone())) } else { toml_value(&row.value) }
}

/// A value in TOML's own syntax.
fn toml_value(value: &Json) -> String {
    match value {
        Json::String(text) => toml::Value::String(text.clone()).to_string(),
        Json::Array(items) => {
            let items: Vec<String> = items.iter().map(toml_value).collect();
            format!("[{}]", items.join(", "))
        }
        other => other.to_string(),
    }
}
