//! The verifier. It checks that
//!
//! 1. every operand and output names a value, and values have unique names;
//! 2. operations come after those that their operands come from, and each defines the value that says so (SSA);
//! 3. the type of every result is the one that [`OpKind::infer`](crate::OpKind::infer) gives for the operands;
//! 4. a state that is written has no other reader: whoever reads the cache reads it after the write;
//! 5. groups partition the operations, and each comes after the groups that its operands come from (so they are acyclic).
//!
//! It does not check that a weight exists in a checkpoint, nor that a device has a kernel for a group.

use std::collections::HashMap;
use std::fmt;

use crate::graph::{Definition, Graph, OpId};
use crate::op::OpKind;

/// Everything that is wrong with a graph, one line each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifyError {
    /// What is wrong and at which value.
    pub problems: Vec<String>,
}

impl fmt::Display for VerifyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the graph is malformed (a bug in whoever built or rewrote it):")?;
        for problem in &self.problems {
            write!(f, "\n  {problem}")?;
        }
        Ok(())
    }
}

impl std::error::Error for VerifyError {}

/// Checks the invariants at the top of this module.
///
/// # Errors
/// All that is wrong.
pub fn verify(graph: &Graph) -> Result<(), VerifyError> {
    let mut problems = Vec::new();
    if check_references(graph, &mut problems) {
        check_names(graph, &mut problems);
        check_ops(graph, &mut problems);
        check_states(graph, &mut problems);
        check_groups(graph, &mut problems);
    }
    if problems.is_empty() { Ok(()) } else { Err(VerifyError { problems }) }
}

/// Everything after this may index.
fn check_references(graph: &Graph, problems: &mut Vec<String>) -> bool {
    let values = graph.values().len();
    for (index, op) in graph.ops().iter().enumerate() {
        if op.output.index() >= values || op.inputs.iter().any(|input| input.index() >= values) {
            problems.push(format!("operation {index} ({}) refers to a value that does not exist", op.kind.name()));
        }
    }
    for output in graph.outputs().iter().filter(|output| output.index() >= values) {
        problems.push(format!("output {} does not exist", output.index()));
    }
    let ops = graph.ops().len();
    for value in graph.values() {
        if matches!(value.definition, Definition::Op(op) if op.index() >= ops) {
            problems.push(format!("%{} is defined by an operation that does not exist", value.name));
        }
    }
    for (index, group) in graph.groups().iter().enumerate() {
        if group.ops.iter().any(|op| op.index() >= ops) {
            problems.push(format!("group {index} holds an operation that does not exist"));
        }
    }
    problems.is_empty()
}

fn check_names(graph: &Graph, problems: &mut Vec<String>) {
    let mut names = HashMap::new();
    for value in graph.values() {
        if names.insert(value.name.as_str(), ()).is_some() {
            problems.push(format!("the name %{} stands for several values", value.name));
        }
    }
}

fn check_ops(graph: &Graph, problems: &mut Vec<String>) {
    for (index, op) in graph.ops().iter().enumerate() {
        let name = &graph.value(op.output).name;
        if graph.value(op.output).definition != Definition::Op(OpId(index as u32)) {
            problems.push(format!("%{name} is not defined by the operation that yields it"));
        }
        for input in &op.inputs {
            if graph.producer(*input).is_some_and(|producer| producer.index() >= index) {
                problems.push(format!("%{name} uses %{} before it is defined", graph.value(*input).name));
            }
        }
        let types: Vec<_> = op.inputs.iter().map(|input| &graph.value(*input).ty).collect();
        match op.kind.infer(&types) {
            Err(message) => problems.push(format!("%{name} = {message}")),
            Ok(ty) if ty != graph.value(op.output).ty => {
                problems.push(format!(
                    "%{name} is declared {} but {} gives {ty}",
                    graph.value(op.output).ty,
                    op.kind.name()
                ));
            }
            Ok(_) => {}
        }
    }
}

fn check_states(graph: &Graph, problems: &mut Vec<String>) {
    let users = graph.users();
    for (index, users) in users.iter().enumerate().filter(|(index, _)| graph.values()[*index].ty.kv_cache().is_some()) {
        let written = users.iter().any(|user| matches!(graph.op(*user).kind, OpKind::KvWrite));
        if written && users.len() > 1 {
            problems.push(format!("%{} is written, but has another reader", graph.values()[index].name));
        }
    }
}

fn check_groups(graph: &Graph, problems: &mut Vec<String>) {
    let mut seen = vec![false; graph.ops().len()];
    for (index, group) in graph.groups().iter().enumerate() {
        for op in &group.ops {
            let name = &graph.value(graph.op(*op).output).name;
            if std::mem::replace(&mut seen[op.index()], true) {
                problems.push(format!("%{name} is in more than one group"));
            }
            if graph.group_of(*op) != index {
                problems.push(format!("%{name} is in group {index}, but is said to be in {}", graph.group_of(*op)));
            }
            for input in &graph.op(*op).inputs {
                if graph.producer(*input).is_some_and(|producer| graph.group_of(producer) > index) {
                    problems.push(format!("group {index} reads %{} of a later group", graph.value(*input).name));
                }
            }
        }
        if !group.ops.is_sorted() {
            problems.push(format!("the operations of group {index} are out of order"));
        }
    }
    for (index, _) in seen.iter().enumerate().filter(|(_, seen)| !**seen) {
        problems.push(format!("%{} is in no group", graph.value(graph.ops()[index].output).name));
    }
}
