//! What the CPU runs for a group, in words: one line for each phase, the same walk that the lowering takes.

use super::CpuTarget;
use super::recording::{Part, PartWork};
use super::schedule::{PhaseKind, PhaseOps, schedule, workspace_values};
use super::steps::{Step, steps};
use allotrope_graph::memory::MemoryPlan;
use allotrope_graph::{Dim, Graph, Op, OpId, OpKind, Sizes, Target, ValueId};
use std::fmt::Write as _;

/// The phases of a group, or why the CPU can't run it.
pub(super) fn describe(graph: &Graph, group: usize) -> String {
    let Some(ops) = graph.groups().get(group).map(|group| group.ops.as_slice()) else {
        return format!("the graph has no group {group}");
    };
    if let Err(reason) = CpuTarget.accepts(graph, ops) {
        return format!("no kernel: {reason}");
    }
    let workspace = workspace_values(graph, ops);
    let mut text = String::new();
    for (index, phase) in schedule(graph, ops).iter().enumerate() {
        let rows = phase.ops.first().and_then(|op| graph.rows_of(*op).ok()).unwrap_or(Dim::Tokens);
        let (kind, parts) = match phase.kind {
            PhaseKind::Rows => ("row program", row_program(graph, phase, &workspace)),
            PhaseKind::Linear => ("projections", phase.ops.iter().map(|op| projection(graph, graph.op(*op))).collect()),
            PhaseKind::Attention => ("attention", phase.ops.iter().map(|op| attention(graph, *op)).collect()),
        };
        let newline = if index == 0 { "" } else { "\n" };
        let _ = write!(text, "{newline}phase {index}: {kind} over {rows} rows: {}", parts.join("; "));
    }
    text
}

/// The launches of a recording as a graph: one box each, with its phases. They run in order, in one dispatch; where
/// members wait for each other, it says so.
pub(super) fn recording(parts: &[Part], limits: &Sizes) -> String {
    let mut text = format!(
        "digraph recording {{\n  label=\"one dispatch of at most {} tokens and {} rows of logits\";\n  node [shape=box];\n",
        limits.tokens, limits.logit_rows
    );
    for phases in parts.chunk_by(|one, next| one.place.0 == next.place.0) {
        let launch = phases.first().map_or(0, |part| part.place.0);
        let _ = write!(text, "  launch{launch} [label=\"launch {launch}");
        for part in phases {
            let kind = match part.work {
                PartWork::Rows(_) => "row program",
                PartWork::EveryRow(_) => "row program by every member",
                PartWork::Linear(_) => "projections",
                PartWork::Shares(_) => "projections in fixed shares",
                PartWork::Attention(_) => "attention",
                PartWork::Heads(_) => "attention, each member its heads,",
            };
            let barrier = if part.barrier { "barrier, " } else { "" };
            let _ = write!(text, "\\n{barrier}phase {}: {kind} over {} rows", part.place.1, part.rows);
        }
        text.push_str("\"];\n");
        if let Some(before) = launch.checked_sub(1) {
            let _ = writeln!(text, "  launch{before} -> launch{launch};");
        }
    }
    text.push_str("}\n");
    text
}

fn name(graph: &Graph, value: ValueId) -> String {
    format!("%{}", graph.value(value).name)
}

fn operand(graph: &Graph, op: &Op, index: usize) -> String {
    op.inputs.get(index).map_or_else(String::new, |value| name(graph, *value))
}

/// The steps in order. What is kept in memory is what the memory plan is asked to place.
fn row_program(graph: &Graph, phase: &PhaseOps, workspace: &[ValueId]) -> Vec<String> {
    let stored = |value: ValueId| {
        let tensor = graph.tensor_type(value).is_some();
        tensor && (MemoryPlan::crosses_launches(graph, value) || workspace.contains(&value))
    };
    let typed = |value: ValueId| format!("{}: {}", name(graph, value), graph.value(value).ty);
    let steps = steps(graph, &phase.ops, stored).into_iter();
    steps
        .map(|step| match step {
            Step::Load(value) => format!("load {}", typed(value)),
            Step::Run(op) => row_op(graph, graph.op(op)),
            Step::Store(value) => format!("store {}", typed(value)),
        })
        .collect()
}

fn row_op(graph: &Graph, op: &Op) -> String {
    let operands: Vec<String> = op.inputs.iter().map(|value| name(graph, *value)).collect();
    // The graph's text has the frequencies; a line of them here would hide the rest.
    let kind = match &op.kind {
        OpKind::RopeAngles { inverse_frequencies, .. } => format!("rope_angles<{}>", 2 * inverse_frequencies.len()),
        kind => kind.to_string(),
    };
    format!("{} = {kind} {}", name(graph, op.output), operands.join(", "))
}

/// `%y = %x · %w (bf16, 96×128)`: the type of what is multiplied, rows and columns of the weight.
fn projection(graph: &Graph, op: &Op) -> String {
    let weight = op.inputs.get(1).and_then(|value| graph.tensor_type(*value));
    let from = weight.map_or_else(String::new, |weight| {
        let shape: Vec<String> = weight.shape.iter().map(Dim::to_string).collect();
        format!("{}, {}", weight.dtype, shape.join("×"))
    });
    let mut about = from;
    if let OpKind::Linear { to, scale } = op.kind {
        if let Some(scale) = scale {
            let _ = write!(about, ", times {scale:?}");
        }
        if weight.is_none_or(|weight| weight.dtype != to) {
            let _ = write!(about, ", to {to}");
        }
    }
    format!("{} = {} · {} ({about})", name(graph, op.output), operand(graph, op, 0), operand(graph, op, 1))
}

/// `%y = 6 heads of %q over 2 of %cache (bf16, 10 wide, scores times 0.3)`.
fn attention(graph: &Graph, id: OpId) -> String {
    let op = graph.op(id);
    let cache = op.inputs.get(1).and_then(|value| graph.value(*value).ty.kv_cache());
    let (OpKind::Attention { heads, scale }, Some(cache)) = (&op.kind, cache) else { return row_op(graph, op) };
    format!(
        "{} = {heads} heads of {} over {} of {} ({}, {} wide, scores times {scale:?})",
        name(graph, op.output),
        operand(graph, op, 0),
        cache.kv_heads,
        operand(graph, op, 1),
        cache.dtype,
        cache.head_dim
    )
}
