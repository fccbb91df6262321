//! Common subexpressions.

use std::collections::HashMap;

use crate::graph::{Rewriting, ValueId};
use crate::op::OpKind;
use crate::passes::Session;

/// Keeps one of several operations of the same kind on the same operands: operations are functions of their operands,
/// so f(x) = f(x). Writes to state are not functions and are left alone.
pub(in crate::passes) fn eliminate_common_subexpressions(session: &mut Session<'_>) {
    let mut rewriting = Rewriting::of(session.graph);
    let mut first: HashMap<(&'static str, Vec<u64>, Vec<ValueId>), ValueId> = HashMap::new();
    for id in session.graph.op_ids() {
        // Operands come before their users, so one look finds what an operand stands for.
        let op = rewriting.settled(id);
        if matches!(op.kind, OpKind::KvWrite) {
            continue;
        }
        let (name, words) = op.kind.identity();
        let (key, output) = ((name, words, op.inputs.clone()), op.output);
        match first.get(&key) {
            Some(&known) if session.may_rewrite() => rewriting.replace(id, known),
            Some(_) => break,
            None => {
                first.insert(key, output);
            }
        }
    }
    if session.matches > 0 {
        rewriting.finish(session.graph);
    }
}
