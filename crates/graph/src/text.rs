//! The text form of a graph, for people and for dumps: one line per value, groups as blocks with their body.
//!
//! The same graph always gives the same text.

use std::fmt;

use crate::graph::{Definition, Graph, OpId};

impl fmt::Display for Graph {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("graph {\n")?;
        for value in self.values() {
            let keyword = match &value.definition {
                Definition::Input(_) => "input",
                Definition::Weight(_) => "weight",
                Definition::State { .. } => "state",
                Definition::Op(_) => continue,
            };
            writeln!(f, "  {keyword} %{}: {}", value.name, value.ty)?;
        }
        for (index, group) in self.groups().iter().enumerate() {
            match group.ops.as_slice() {
                [op] => {
                    f.write_str("  ")?;
                    write_op(self, *op, f)?;
                }
                ops => {
                    writeln!(f, "  group {index} {{")?;
                    for op in ops {
                        f.write_str("    ")?;
                        write_op(self, *op, f)?;
                    }
                    f.write_str("  }\n")?;
                }
            }
        }
        f.write_str("  return")?;
        for (index, output) in self.outputs().iter().enumerate() {
            write!(f, "{} %{}", if index > 0 { "," } else { "" }, self.value(*output).name)?;
        }
        f.write_str("\n}\n")
    }
}

fn write_op(graph: &Graph, id: OpId, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let op = graph.op(id);
    let output = graph.value(op.output);
    write!(f, "%{}: {} = {}(", output.name, output.ty, op.kind)?;
    for (index, input) in op.inputs.iter().enumerate() {
        write!(f, "{}%{}", if index > 0 { ", " } else { "" }, graph.value(*input).name)?;
    }
    f.write_str(")\n")
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
