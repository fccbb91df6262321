//! What will happen and why, for people and as JSON.

use std::fmt::Write as _;

use serde_json::{Value as Json, json};

use crate::error::SettingsError;
use crate::options::unknown_group;
use crate::settings::{Row, Settings, is_within};
use crate::source::Source;

/// How an explanation is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Format {
    /// Aligned tables.
    Text {
        /// With the escape sequences that a terminal shows as bold and dim text.
        color: bool,
    },
    /// JSON, as `explanation_schema` describes it.
    Json,
}

/// What a pass did, for [`explain`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PassLine {
    /// The pass's name.
    pub name: String,
    /// The path of the setting that switches it.
    pub setting: String,
    /// How often it matched on this model, if it ran.
    pub matches: Option<usize>,
    /// Anything to add, such as what is left after it.
    pub note: Option<String>,
    /// What looked like a match and was left alone, with the reason.
    pub left_alone: Vec<String>,
}

/// Explains every setting, or those of the group `only`, and every pass that belongs to them.
///
/// # Errors
///
/// If `only` is neither a group of settings nor a setting.
pub fn explain(
    settings: &Settings,
    passes: &[PassLine],
    only: Option<&str>,
    format: &Format,
) -> Result<String, SettingsError> {
    let mut rows = settings.rows();
    let mut passes: Vec<&PassLine> = passes.iter().collect();
    if let Some(only) = only {
        rows.retain(|row| is_within(row.setting, only));
        passes.retain(|pass| is_within(&pass.setting, only));
        if rows.is_empty() {
            return Err(unknown_group(only, "--only"));
        }
    }
    let on = |pass: &PassLine| settings.row(&pass.setting);
    Ok(match format {
        Format::Json => json_of(&rows, &passes, &on),
        Format::Text { color } => text_of(&rows, &passes, &on, Style { color: *color }),
    })
}

/// The settings that differ between two resolutions, such as those of two levels: before, after and why.
pub fn diff(before: &Settings, after: &Settings, format: &Format) -> String {
    let changed: Vec<(Row, Row)> =
        before.rows().into_iter().zip(after.rows()).filter(|(old, new)| old.value != new.value).collect();
    match format {
        Format::Json => {
            let list: Vec<Json> = changed
                .iter()
                .map(|(old, new)| json!({ "setting": new.setting, "before": row_json(old), "after": row_json(new) }))
                .collect();
            pretty(&json!({ "changed": list }))
        }
        Format::Text { color } => {
            if changed.is_empty() {
                return "No setting differs.\n".to_owned();
            }
            let style = Style { color: *color };
            let mut table = Table::new(["setting", "before", "after", "source", "reason"]);
            for (old, new) in &changed {
                table.row([
                    new.setting.to_owned(),
                    old.shown.clone(),
                    new.shown.clone(),
                    new.source.to_string(),
                    new.reason.clone().unwrap_or_default(),
                ]);
            }
            let mut text = String::new();
            table.write(&mut text, style);
            text
        }
    }
}

fn json_of(rows: &[Row], passes: &[&PassLine], on: &dyn Fn(&PassLine) -> Option<Row>) -> String {
    let settings: Vec<Json> = rows.iter().map(row_json).collect();
    let passes: Vec<Json> = passes
        .iter()
        .map(|pass| {
            let row = on(pass);
            json!({
                "name": pass.name,
                "setting": pass.setting,
                "on": row.as_ref().and_then(|row| row.value.as_bool()),
                "source": row.as_ref().map(|row| row.source.to_string()),
                "reason": row.and_then(|row| row.reason),
                "matches": pass.matches,
                "note": pass.note,
                "left_alone": pass.left_alone,
            })
        })
        .collect();
    pretty(&json!({ "settings": settings, "passes": passes }))
}

fn row_json(row: &Row) -> Json {
    let mut source = json!({ "kind": row.source.kind() });
    let detail = match &row.source {
        Source::CommandLine { flag } => json!({ "flag": flag }),
        Source::Environment { variable } => json!({ "variable": variable }),
        Source::File { path, line } => json!({ "path": path.to_string_lossy(), "line": line }),
        Source::Level(level) => json!({ "level": level.to_string() }),
        Source::Forced | Source::Builder | Source::Model | Source::Device | Source::Default => json!({}),
    };
    if let (Json::Object(source), Json::Object(detail)) = (&mut source, detail) {
        source.extend(detail);
    }
    json!({ "setting": row.setting, "value": row.value, "source": source, "reason": row.reason })
}

fn pretty(json: &Json) -> String {
    format!("{json:#}\n")
}

fn text_of(rows: &[Row], passes: &[&PassLine], on: &dyn Fn(&PassLine) -> Option<Row>, style: Style) -> String {
    let mut table = Table::new(["setting", "value", "source", "reason"]);
    let mut group = None;
    for row in rows {
        let (prefix, name) = row.setting.rsplit_once('.').unwrap_or(("", row.setting));
        if group != Some(prefix) && !prefix.is_empty() {
            table.heading(format!("[{prefix}]"));
        }
        group = Some(prefix);
        table.row([name.to_owned(), row.shown.clone(), row.source.to_string(), row.reason.clone().unwrap_or_default()]);
    }
    let mut text = String::new();
    table.write(&mut text, style);
    if passes.is_empty() {
        return text;
    }
    text.push('\n');
    let mut table = Table::new(["pass", "state", "matches", "why"]);
    for pass in passes {
        let row = on(pass);
        let is_on = row.as_ref().is_some_and(|row| row.value == Json::Bool(true));
        let matches = pass.matches.map_or_else(|| "–".to_owned(), |matches| matches.to_string());
        let mut why = row.map_or_else(String::new, |row| match row.reason {
            Some(reason) => format!("{}: {reason}", row.source),
            None => row.source.to_string(),
        });
        if is_on && pass.matches == Some(0) {
            why.push_str("; nothing to match in this model");
        }
        if let Some(note) = &pass.note {
            let _ = write!(why, "; {note}");
        }
        table.row([pass.name.clone(), if is_on { "on" } else { "off" }.to_owned(), matches, why]);
        for reason in &pass.left_alone {
            table.remark(format!("    left alone: {reason}"));
        }
    }
    table.write(&mut text, style);
    text
}

#[derive(Clone, Copy)]
struct Style {
    color: bool,
}

impl Style {
    fn strong(self, text: &str) -> String {
        if self.color { format!("\u{1b}[1m{text}\u{1b}[0m") } else { text.to_owned() }
    }
}

enum Line<const COLUMNS: usize> {
    Heading(String),
    /// A line that belongs to the row above it and keeps to no column.
    Remark(String),
    Cells([String; COLUMNS]),
}

/// A table whose columns are as wide as their widest cell, the last one aside.
struct Table<const COLUMNS: usize> {
    titles: [&'static str; COLUMNS],
    lines: Vec<Line<COLUMNS>>,
}

impl<const COLUMNS: usize> Table<COLUMNS> {
    const fn new(titles: [&'static str; COLUMNS]) -> Self {
        Self { titles, lines: Vec::new() }
    }

    fn heading(&mut self, heading: String) {
        self.lines.push(Line::Heading(heading));
    }

    fn remark(&mut self, text: String) {
        self.lines.push(Line::Remark(text));
    }

    fn row(&mut self, cells: [String; COLUMNS]) {
        self.lines.push(Line::Cells(cells));
    }

    fn write(&self, text: &mut String, style: Style) {
        let mut widths = self.titles.map(|title| title.chars().count());
        for line in &self.lines {
            if let Line::Cells(cells) = line {
                for (width, cell) in widths.iter_mut().zip(cells) {
                    *width = (*width).max(cell.chars().count());
                }
            }
        }
        let aligned = |cells: &[&str]| {
            let mut line = String::new();
            for (cell, width) in cells.iter().zip(widths) {
                let _ = write!(line, "{cell:width$}  ");
            }
            line.trim_end().to_owned()
        };
        let _ = writeln!(text, "{}", style.strong(&aligned(&self.titles)));
        for line in &self.lines {
            match line {
                Line::Heading(heading) => {
                    let _ = writeln!(text, "\n{}", style.strong(heading));
                }
                Line::Remark(remark) => {
                    let _ = writeln!(text, "{remark}");
                }
                Line::Cells(cells) => {
                    let cells: Vec<&str> = cells.iter().map(String::as_str).collect();
                    let _ = writeln!(text, "{}", aligned(&cells));
                }
            }
        }
    }
}
