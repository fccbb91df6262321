//! From a graph to text.

use std::fmt;

use crate::graph::{Definition, Graph, OpId, ValueId};

/// What a line of text is about, so that something can be said under it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Place {
    /// The definition of a value.
    Value(ValueId),
    /// The head of a group.
    Group(usize),
    /// The results of the step.
    Outputs,
}

/// One line of the text form.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// What the line defines, if it defines something.
    pub place: Option<Place>,
    /// The text, indented, without the end of the line.
    pub text: String,
}

/// A value's name as the text form has it: `%layers.3.q_proj`, or quoted where it has other characters than names have.
pub(crate) struct Name<'a>(pub(crate) &'a str);

impl fmt::Display for Name<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if super::is_plain(self.0) {
            return write!(f, "%{}", self.0);
        }
        f.write_str("%\"")?;
        for character in self.0.chars() {
            match character {
                '"' | '\\' => write!(f, "\\{character}")?,
                '\n' => f.write_str("\\n")?,
                character if character.is_control() => write!(f, "\\u{{{:x}}}", u32::from(character))?,
                character => write!(f, "{character}")?,
            }
        }
        f.write_str("\"")
    }
}

/// The text form, line by line.
pub fn lines(graph: &Graph) -> Vec<Line> {
    let mut lines = vec![plain("graph {")];
    let leaves = leaf_lines(graph, |_| true);
    let has_leaves = !leaves.is_empty();
    lines.extend(leaves);
    if has_leaves && !graph.groups().is_empty() {
        lines.push(plain(""));
    }
    for index in 0..graph.groups().len() {
        lines.extend(group_lines(graph, index));
    }
    lines.extend(ungrouped_lines(graph));
    let outputs: Vec<String> =
        graph.outputs().iter().map(|output| Name(&graph.value(*output).name).to_string()).collect();
    let separator = if outputs.is_empty() { "" } else { " " };
    lines.push(Line { place: Some(Place::Outputs), text: format!("  return{separator}{}", outputs.join(", ")) });
    lines.push(plain("}"));
    lines
}

/// The launches that run an operation of one decoder layer: one whose name begins with `layers.N.`.
pub fn launches_of_layer(graph: &Graph, layer: usize) -> Vec<usize> {
    let prefix = format!("layers.{layer}.");
    let belongs = |op: &OpId| graph.value(graph.op(*op).output).name.starts_with(&prefix);
    (0..graph.groups().len()).filter(|index| graph.groups()[*index].ops.iter().any(belongs)).collect()
}

/// The launches of one decoder layer, with what they read from outside it, as an excerpt of the text form. `None` if no
/// operation belongs to it ([`launches_of_layer`]).
pub fn print_layer(graph: &Graph, layer: usize) -> Option<String> {
    let groups = launches_of_layer(graph, layer);
    if groups.is_empty() {
        return None;
    }
    let members = |op: OpId| groups.binary_search(&graph.group_of(op)).is_ok();
    let read: Vec<ValueId> = groups.iter().flat_map(|index| graph.group_inputs(&graph.groups()[*index])).collect();
    let mut text = format!("; layer {layer}: launches {}\n", ranges(&groups));
    for line in leaf_lines(graph, |id| read.contains(&id)) {
        text.push_str(&line.text);
        text.push('\n');
    }
    let mut computed: Vec<ValueId> =
        read.into_iter().filter(|id| graph.producer(*id).is_some_and(|producer| !members(producer))).collect();
    computed.sort_unstable();
    computed.dedup();
    for id in computed {
        let value = graph.value(id);
        text.push_str(&format!("  ; from before: {}: {}\n", Name(&value.name), value.ty));
    }
    text.push('\n');
    for index in groups {
        for line in group_lines(graph, index) {
            text.push_str(&line.text);
            text.push('\n');
        }
    }
    Some(text)
}

/// `3 to 7` for a run of launches, `3, 5 to 7` for several.
fn ranges(places: &[usize]) -> String {
    let mut parts: Vec<String> = Vec::new();
    let mut rest = places;
    while let [first, ..] = rest {
        let run = rest.iter().enumerate().take_while(|(offset, place)| **place == first + offset).count();
        parts.push(if run == 1 { first.to_string() } else { format!("{first} to {}", first + run - 1) });
        rest = &rest[run..];
    }
    parts.join(", ")
}

fn plain(text: &str) -> Line {
    Line { place: None, text: text.to_owned() }
}

fn leaf_lines(graph: &Graph, wanted: impl Fn(ValueId) -> bool) -> Vec<Line> {
    let mut lines = Vec::new();
    for id in graph.value_ids() {
        let value = graph.value(id);
        let keyword = match &value.definition {
            Definition::Input(_) => "input".to_owned(),
            Definition::Weight(_) => "weight".to_owned(),
            Definition::State { layer } => format!("state<layer={layer}>"),
            Definition::Op(_) => continue,
        };
        if wanted(id) {
            let text = format!("  {keyword} {}: {}", Name(&value.name), value.ty);
            lines.push(Line { place: Some(Place::Value(id)), text });
        }
    }
    lines
}

fn group_lines(graph: &Graph, index: usize) -> Vec<Line> {
    match graph.groups()[index].ops.as_slice() {
        [op] => vec![op_line(graph, *op, "  ")],
        ops => {
            let head = format!("  group {{ ; launch {index}: {}", graph.group_label(index));
            let mut lines = vec![Line { place: Some(Place::Group(index)), text: head.trim_end().to_owned() }];
            lines.extend(ops.iter().map(|op| op_line(graph, *op, "    ")));
            lines.push(plain("  }"));
            lines
        }
    }
}

/// Operations that are in no group, which only a malformed graph has.
fn ungrouped_lines(graph: &Graph) -> Vec<Line> {
    let mut lines = Vec::new();
    for op in graph.op_ids().filter(|op| graph.group_of(*op) == usize::MAX) {
        let mut line = op_line(graph, op, "  ");
        line.text.push_str(" ; in no group");
        lines.push(line);
    }
    lines
}

fn op_line(graph: &Graph, id: OpId, indent: &str) -> Line {
    let op = graph.op(id);
    let output = graph.value(op.output);
    let operands: Vec<String> = op.inputs.iter().map(|input| Name(&graph.value(*input).name).to_string()).collect();
    let text = format!("{indent}{}: {} = {}({})", Name(&output.name), output.ty, op.kind, operands.join(", "));
    Line { place: Some(Place::Value(op.output)), text }
}

impl fmt::Display for Graph {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        lines(self).iter().try_for_each(|line| writeln!(f, "{}", line.text))
    }
}

impl Graph {
    /// A short name for what a group runs, from its operations in order: `linear+add+rms_norm`, `linear×3+rope×2+kv_write`.
    pub fn group_label(&self, group: usize) -> String {
        let mut names: Vec<(&str, usize)> = Vec::new();
        for op in &self.groups()[group].ops {
            let name = self.op(*op).kind.name();
            match names.iter_mut().find(|(known, _)| *known == name) {
                Some((_, count)) => *count += 1,
                None => names.push((name, 1)),
            }
        }
        let parts: Vec<String> = names
            .into_iter()
            .map(|(name, count)| if count == 1 { name.to_string() } else { format!("{name}×{count}") })
            .collect();
        parts.join("+")
    }
}
