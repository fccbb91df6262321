//! The rewrites that touch operations. Each line of code that replaces something stands under the identity that it uses.

use std::collections::HashMap;

use super::Outcome;
use crate::graph::{Graph, OpId, ValueId};
use crate::op::OpKind;
use crate::types::DType;

/// Drops operations that give back their operand bit by bit.
pub(super) fn eliminate_noops(graph: &mut Graph) -> Outcome {
    let mut replacement = identity(graph);
    let mut drop = vec![false; graph.ops().len()];
    for (index, op) in graph.ops().iter().enumerate() {
        let OpKind::Cast { to } = op.kind else { continue };
        let Some(&from) = op.inputs.first() else { continue };
        // cast<t>(x: t) = x.
        if graph.tensor_type(from).is_some_and(|tensor| tensor.dtype == to) {
            replacement[op.output.index()] = from;
            drop[index] = true;
            continue;
        }
        // cast<t>(cast<u>(x: t)) = x where u holds every value of t.
        let Some(origin) = graph.producer(from).map(|producer| graph.op(producer)) else { continue };
        let (OpKind::Cast { to: between }, Some(&origin)) = (&origin.kind, origin.inputs.first()) else { continue };
        if graph.tensor_type(origin).is_some_and(|tensor| tensor.dtype == to && holds_all(*between, to)) {
            replacement[op.output.index()] = origin;
            drop[index] = true;
        }
    }
    let dropped = drop.iter().filter(|drop| **drop).count();
    if dropped > 0 {
        graph.retain(&replacement, |op| !drop[op.index()]);
    }
    Outcome { matches: dropped + eliminate_dead_code(graph), declined: Vec::new() }
}

/// Keeps one of several operations of the same kind on the same operands: operations are functions of their operands,
/// so f(x) = f(x). Writes to state are not functions and are left alone.
pub(super) fn eliminate_common_subexpressions(graph: &mut Graph) -> Outcome {
    let mut replacement = identity(graph);
    let mut first: HashMap<(String, Vec<ValueId>), ValueId> = HashMap::new();
    let mut drop = vec![false; graph.ops().len()];
    for (index, op) in graph.ops().iter().enumerate() {
        if matches!(op.kind, OpKind::KvWrite) {
            continue;
        }
        // Operands come before their users, so one look finds what an operand stands for.
        let inputs: Vec<ValueId> = op.inputs.iter().map(|input| replacement[input.index()]).collect();
        match first.get(&(op.kind.to_string(), inputs.clone())) {
            Some(&known) => {
                replacement[op.output.index()] = known;
                drop[index] = true;
            }
            None => {
                first.insert((op.kind.to_string(), inputs), op.output);
            }
        }
    }
    let matches = drop.iter().filter(|drop| **drop).count();
    if matches > 0 {
        graph.retain(&replacement, |op| !drop[op.index()]);
    }
    Outcome { matches, declined: Vec::new() }
}

/// Drops operations whose result nothing reads. What writes state is alive.
fn eliminate_dead_code(graph: &mut Graph) -> usize {
    let mut alive = vec![false; graph.values().len()];
    graph.outputs().iter().for_each(|output| alive[output.index()] = true);
    for op in graph.ops().iter().rev() {
        if alive[op.output.index()] || matches!(op.kind, OpKind::KvWrite) {
            alive[op.output.index()] = true;
            op.inputs.iter().for_each(|input| alive[input.index()] = true);
        }
    }
    let kept: Vec<bool> = graph.ops().iter().map(|op| alive[op.output.index()]).collect();
    let dropped = kept.iter().filter(|kept| !**kept).count();
    if dropped > 0 {
        let replacement = identity(graph);
        graph.retain(&replacement, |op: OpId| kept[op.index()]);
    }
    dropped
}

fn identity(graph: &Graph) -> Vec<ValueId> {
    (0..graph.values().len()).map(|index| ValueId(index as u32)).collect()
}

/// True if every value of `narrow`, NaN payloads aside, is a value of `wide`.
fn holds_all(wide: DType, narrow: DType) -> bool {
    wide == narrow
        || matches!(
            (wide, narrow),
            (DType::F32, DType::F16 | DType::Bf16 | DType::F8E4M3) | (DType::F16 | DType::Bf16, DType::F8E4M3)
        )
}
