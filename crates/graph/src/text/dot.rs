//! A graph as Graphviz draws it: launches as boxes around their operations, values as arrows.

use std::fmt::Write as _;

use crate::graph::{Graph, OpId};

/// The launches `wanted` of a graph in the DOT language, with arrows for the values that pass between their operations.
/// Inputs, weights and states are left out: they would be most of the picture.
pub fn dot(graph: &Graph, wanted: impl Fn(usize) -> bool) -> String {
    let mut text = String::from(
        "digraph graph_of_a_step {\n  rankdir=TB;\n  node [shape=box, style=filled, fillcolor=white, fontname=\"monospace\"];\n  \
         edge [fontname=\"monospace\", fontsize=9];\n",
    );
    for (index, group) in graph.groups().iter().enumerate().filter(|(index, _)| wanted(*index)) {
        let _ = writeln!(text, "  subgraph cluster_{index} {{");
        let _ = writeln!(text, "    label=\"launch {index}\"; style=filled; fillcolor=\"#eef3fa\"; color=\"#8aa4c8\";");
        for op in &group.ops {
            let output = &graph.value(graph.op(*op).output);
            let _ = writeln!(
                text,
                "    op{} [label=\"{}\\n{}\\n{}\"];",
                op.0,
                graph.op(*op).kind.name(),
                escaped(&output.name),
                escaped(&output.ty.to_string())
            );
        }
        text.push_str("  }\n");
    }
    let is_wanted = |op: OpId| wanted(graph.group_of(op));
    for id in graph.op_ids() {
        for producer in graph.op(id).inputs.iter().filter_map(|input| graph.producer(*input)) {
            if is_wanted(id) && is_wanted(producer) {
                let _ = writeln!(text, "  op{} -> op{};", producer.0, id.0);
            }
        }
    }
    text.push_str("}\n");
    text
}

fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', " ")
}
