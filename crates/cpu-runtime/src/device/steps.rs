//! What a row program does with values, in order. The program, its description and what a launch may overwrite all
//! follow from this one list.

use super::operands::{Use, operand_use};
use allotrope_graph::{Graph, OpId, ValueId};
use std::collections::HashSet;

/// A step of a row program, done for one row after the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// The row of a value is read from memory, where an operation first uses it.
    Load(ValueId),
    /// An operation, over rows that were loaded or computed before.
    Run(OpId),
    /// The row of a value is written to memory, as soon as it is computed.
    Store(ValueId),
}

/// The steps of the ops of one phase; `stored` says which results have a place in memory.
pub(super) fn steps(graph: &Graph, ops: &[OpId], stored: impl Fn(ValueId) -> bool) -> Vec<Step> {
    let mut steps = Vec::new();
    let mut known: HashSet<ValueId> = HashSet::new();
    for &id in ops {
        let op = graph.op(id);
        for (index, &operand) in op.inputs.iter().enumerate() {
            if operand_use(graph, op, index) == Use::Rows && known.insert(operand) {
                steps.push(Step::Load(operand));
            }
        }
        steps.push(Step::Run(id));
        known.insert(op.output);
        if stored(op.output) {
            steps.push(Step::Store(op.output));
        }
    }
    steps
}
