//! From a group to phases: which of its ops run together, and which values need memory between phases.

use allotrope_graph::{Graph, OpId, OpKind, ValueId};

/// What a phase runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PhaseKind {
    /// A chain of row operations, parallel over rows.
    Rows,
    /// Projections that do not depend on each other, parallel over output columns.
    Linear,
    /// One attention operation, parallel over tokens and KV heads.
    Attention,
}

/// Ops of one kind that run between two barriers, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PhaseOps {
    pub(crate) kind: PhaseKind,
    pub(crate) ops: Vec<OpId>,
}

fn kind_of(kind: &OpKind) -> PhaseKind {
    match kind {
        OpKind::Linear { .. } => PhaseKind::Linear,
        OpKind::Attention { .. } => PhaseKind::Attention,
        _ => PhaseKind::Rows,
    }
}

/// Cuts a group's ops, which are in an order that respects their operands, into as few phases as either of two greedy
/// orders gives: all that is ready of row operations first, or of projections first.
pub(crate) fn schedule(graph: &Graph, ops: &[OpId]) -> Vec<PhaseOps> {
    let rows_first = greedy(graph, ops, [PhaseKind::Rows, PhaseKind::Linear, PhaseKind::Attention]);
    let linear_first = greedy(graph, ops, [PhaseKind::Linear, PhaseKind::Rows, PhaseKind::Attention]);
    if linear_first.len() < rows_first.len() { linear_first } else { rows_first }
}

fn greedy(graph: &Graph, ops: &[OpId], order: [PhaseKind; 3]) -> Vec<PhaseOps> {
    let mut open = ops.to_vec();
    let mut phases = Vec::new();
    while !open.is_empty() {
        let next = order.iter().map(|kind| ready(graph, &open, *kind)).find(|ops| !ops.is_empty());
        // Operands come from earlier ops, so the first open op is always ready.
        let Some(ready) = next else { break };
        open.retain(|op| !ready.contains(op));
        let kind = ready.first().map_or(PhaseKind::Rows, |op| kind_of(&graph.op(*op).kind));
        phases.push(PhaseOps { kind, ops: ready });
    }
    phases
}

/// The open ops of a kind that can run now. Row operations may depend on each other within a phase, as far as they read
/// the row that they compute; other rows are there when the phase is over.
fn ready(graph: &Graph, open: &[OpId], kind: PhaseKind) -> Vec<OpId> {
    let mut chosen: Vec<OpId> = Vec::new();
    for op in open.iter().filter(|op| kind_of(&graph.op(**op).kind) == kind) {
        let by_rows = kind == PhaseKind::Rows && !matches!(graph.op(*op).kind, OpKind::SelectRows);
        let waits = graph.op(*op).inputs.iter().any(|input| {
            graph
                .producer(*input)
                .is_some_and(|producer| open.contains(&producer) && !(by_rows && chosen.contains(&producer)))
        });
        if !waits {
            chosen.push(*op);
        }
        if kind == PhaseKind::Attention && !chosen.is_empty() {
            break;
        }
    }
    chosen
}

/// The tensors that a group needs memory for while it runs: those that a phase hands to a later one, and all results of
/// projections and attention, which have no registers to leave in what nothing reads.
pub(crate) fn workspace_values(graph: &Graph, ops: &[OpId]) -> Vec<ValueId> {
    let phases = schedule(graph, ops);
    let phase_of = |op: OpId| phases.iter().position(|phase| phase.ops.contains(&op));
    let mut values: Vec<ValueId> = Vec::new();
    for op in ops.iter().map(|op| graph.op(*op)) {
        if kind_of(&op.kind) != PhaseKind::Rows {
            values.push(op.output);
        }
        for &input in &op.inputs {
            let Some(producer) = graph.producer(input).filter(|producer| ops.contains(producer)) else { continue };
            let crosses = phase_of(producer) != graph.producer(op.output).and_then(phase_of);
            if crosses && graph.tensor_type(input).is_some() && !values.contains(&input) {
                values.push(input);
            }
        }
    }
    values
}
