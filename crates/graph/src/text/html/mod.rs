//! The passes on one page: the text form before and after each of them, side by side, for a browser.

use std::collections::HashMap;

use serde_json::{Value, json};

use super::printer::{Name, lines};
use crate::graph::Graph;
use crate::history::PassReport;
use crate::passes::find;

/// A pass and the graph after it.
#[derive(Debug, Clone, Copy)]
pub struct Stage<'a> {
    /// What the pass did.
    pub report: &'a PassReport,
    /// The graph after the pass.
    pub graph: &'a Graph,
}

/// A page of HTML that shows the graph before and after each pass, side by side. It is one file that loads nothing:
/// styles, script and data are in it.
///
/// `as_built` is the graph before the first pass, `stages` are all passes in the order in which they ran. A pass can be
/// linked to by its name: `page.html#fuse_add_norm`; `#all` shows what all passes did together.
///
/// The same graphs always give the same page: how long passes took is not on it.
///
/// # The data
///
/// The page shows what the JSON in its element `data` says:
///
/// - `lines`: each line of text that any of the graphs has, once, in the order in which they first come;
/// - `as_built`: the graph before the first pass: `ops`, `launches` and `text`, which is the places in `lines` of the
///   lines of its text form, in order;
/// - `stages`: by pass, the same three, and its report. `text` is `null` where the pass left the text as it was.
///
/// Names come from checkpoints, so no one vouches for them. They are in this JSON only, in which `<` is always escaped,
/// and the script puts them on the page as text, never as HTML.
pub fn page(title: &str, as_built: &Graph, stages: &[Stage<'_>]) -> String {
    // `<` ends the element or begins a comment in it; in JSON it can only be in a string, where the escape means it.
    let data = data(as_built, stages).to_string().replace('<', "\\u003c");
    format!(
        include_str!("page.html"),
        title = escaped(title),
        style = include_str!("style.css"),
        data = data,
        model = include_str!("model.js"),
        view = include_str!("view.js"),
    )
}

/// What the script shows.
fn data(as_built: &Graph, stages: &[Stage<'_>]) -> Value {
    let mut table = LineTable::default();
    let mut text = table.text(as_built);
    let first = json!({ "ops": as_built.ops().len(), "launches": as_built.groups().len(), "text": text });
    let stages: Vec<Value> = stages
        .iter()
        .map(|stage| {
            let before = std::mem::replace(&mut text, table.text(stage.graph));
            stage_data(stage.report, (before != text).then_some(&text))
        })
        .collect();
    json!({ "lines": table.lines, "as_built": first, "stages": stages })
}

/// A report, with the text after the pass where that is another than before.
fn stage_data(report: &PassReport, text: Option<&Vec<usize>>) -> Value {
    let near_misses: Vec<Value> = report
        .near_misses
        .iter()
        .map(|miss| json!({ "reason": miss.reason, "first": Name(&miss.first).to_string(), "count": miss.count }))
        .collect();
    let pass = find(report.name);
    json!({
        "name": report.name,
        "description": report.description,
        "identity": pass.map(|pass| pass.identity),
        "setting": pass.map(|pass| pass.setting()),
        "enabled": report.enabled,
        "matches": report.matches,
        "near_misses": near_misses,
        "ops": report.ops,
        "launches": report.launches,
        "out_of_fuel": report.out_of_fuel,
        "text": text,
    })
}

/// Every line once: most lines are the same after a pass as before it.
#[derive(Default)]
struct LineTable {
    lines: Vec<String>,
    places: HashMap<String, usize>,
}

impl LineTable {
    /// The places of the lines of a graph's text form.
    fn text(&mut self, graph: &Graph) -> Vec<usize> {
        lines(graph).into_iter().map(|line| self.place(line.text)).collect()
    }

    fn place(&mut self, line: String) -> usize {
        let LineTable { lines, places } = self;
        *places.entry(line).or_insert_with_key(|line| {
            lines.push(line.clone());
            lines.len() - 1
        })
    }
}

/// Text as HTML has it between tags.
fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
