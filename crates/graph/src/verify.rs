//! The verifier. It checks that
//!
//! 1. **names**: every value has a name of its own;
//! 2. **SSA**: operations come after those that their operands come from, and each defines the value that says so;
//! 3. **types and shapes**: the type of every result, symbolic sizes included, is the one that
//!    [`OpKind::infer`](crate::OpKind::infer) gives for the operands; inputs of the step have the types of
//!    [`Input`](crate::Input); no static size is zero, and sizes of
//!    weights are static;
//! 4. **rounding points**: it follows from 3 that no result is kept wider or narrower than its operation rounds to; and
//!    numbers that an operation carries (scales, epsilons) are ones that it can compute with;
//! 5. **state**: a state that is written has no other reader, so whoever reads the cache reads it after the write, and no
//!    two writes race; no state leaves the step;
//! 6. **groups**: they partition the operations, each after the groups that its operands come from (so they are closed and
//!    acyclic), with their operations in order;
//! 7. **aliasing**: no two values stand for the same input, weight or KV cache.
//!
//! It does not check that a weight exists in a checkpoint, nor that a device has a kernel for a group.

use std::collections::{BTreeMap, HashMap};
use std::fmt;

use crate::graph::{Definition, Graph, OpId, Value, ValueId};
use crate::op::OpKind;
use crate::text::{Place, lines};
use crate::types::{Dim, ValueType};

/// Something that is wrong with a graph.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The line of the text form that it belongs to.
    pub place: Place,
    /// What is wrong.
    pub message: String,
}

/// Everything that is wrong with a graph.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifyError {
    /// In the order of the text form.
    pub problems: Vec<Problem>,
    shown: String,
}

impl VerifyError {
    fn new(graph: &Graph, problems: Vec<Problem>) -> Self {
        let mut shown = String::new();
        let mut sorted = Vec::with_capacity(problems.len());
        let mut open: BTreeMap<Place, Vec<Problem>> = BTreeMap::new();
        for problem in problems {
            open.entry(problem.place).or_default().push(problem);
        }
        for line in lines(graph) {
            let Some(here) = line.place.and_then(|place| open.remove(&place)) else { continue };
            let indent = line.text.len() - line.text.trim_start().len();
            shown.push_str(&format!("\n{}", line.text));
            for problem in &here {
                shown.push_str(&format!("\n{}^ {}", " ".repeat(indent), problem.message));
            }
            sorted.extend(here);
        }
        for problem in open.into_values().flatten() {
            shown.push_str(&format!("\n{}", problem.message));
            sorted.push(problem);
        }
        VerifyError { problems: sorted, shown }
    }
}

impl fmt::Display for VerifyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the graph is malformed (a bug in whoever built or rewrote it):{}", self.shown)
    }
}

impl std::error::Error for VerifyError {}

/// Checks the invariants at the top of this module.
///
/// # Errors
/// All that is wrong.
pub fn verify(graph: &Graph) -> Result<(), VerifyError> {
    let mut problems = Problems { graph, found: Vec::new() };
    problems.check_names();
    problems.check_leaves();
    problems.check_ops();
    problems.check_states();
    problems.check_groups();
    if problems.found.is_empty() { Ok(()) } else { Err(VerifyError::new(graph, problems.found)) }
}

struct Problems<'a> {
    graph: &'a Graph,
    found: Vec<Problem>,
}

impl Problems<'_> {
    fn at(&mut self, value: ValueId, message: String) {
        self.found.push(Problem { place: Place::Value(value), message });
    }

    fn name(&self, value: ValueId) -> &str {
        &self.graph.value(value).name
    }

    fn values(&self) -> impl Iterator<Item = (ValueId, &Value)> {
        self.graph.value_ids().zip(self.graph.values())
    }

    fn check_names(&mut self) {
        let mut names = HashMap::with_capacity(self.graph.values().len());
        let again: Vec<ValueId> =
            self.values().filter_map(|(id, value)| names.insert(&*value.name, id).map(|_| id)).collect();
        for id in again {
            let message = format!("the name %{} stands for another value already", self.name(id));
            self.at(id, message);
        }
    }

    fn check_leaves(&mut self) {
        let mut known: HashMap<&Definition, ValueId> = HashMap::new();
        let mut wrong = Vec::new();
        for (id, value) in self.values().filter(|(_, value)| !matches!(value.definition, Definition::Op(_))) {
            if let Some(first) = known.insert(&value.definition, id) {
                wrong.push((id, format!("it stands for the same leaf as %{}", self.name(first))));
            }
            let empty = match &value.ty {
                ValueType::Tensor(tensor) => tensor.shape.contains(&Dim::Static(0)),
                ValueType::KvCache(cache) => cache.kv_heads == 0 || cache.head_dim == 0,
            };
            if empty {
                wrong.push((id, format!("{} has a size of zero", value.ty)));
            }
            let symbolic = matches!((&value.definition, &value.ty), (Definition::Weight(_), ValueType::Tensor(tensor))
                if tensor.shape.iter().any(|dim| !matches!(dim, Dim::Static(_))));
            if symbolic {
                wrong.push((id, format!("{} has a size that no checkpoint knows", value.ty)));
            }
            let fits = match &value.definition {
                Definition::Input(input) => value.ty == ValueType::Tensor(input.tensor_type()),
                Definition::State { .. } => value.ty.kv_cache().is_some(),
                _ => value.ty.tensor().is_some(),
            };
            if !fits {
                let expected = match &value.definition {
                    Definition::Input(input) => input.tensor_type().to_string(),
                    Definition::State { .. } => "a KV cache".to_owned(),
                    _ => "a tensor".to_owned(),
                };
                wrong.push((id, format!("it must be {expected}, but is declared {}", value.ty)));
            }
        }
        wrong.into_iter().for_each(|(id, message)| self.at(id, message));
    }

    fn check_ops(&mut self) {
        let graph = self.graph;
        for (id, op) in graph.op_ids().zip(graph.ops()) {
            if graph.value(op.output).definition != Definition::Op(id) {
                self.at(op.output, "it is not defined by the operation that yields it".to_owned());
            }
            for input in &op.inputs {
                if graph.producer(*input).is_some_and(|producer| producer >= id) {
                    self.at(op.output, format!("it uses %{} before it is defined", self.name(*input)));
                }
            }
            let types: Vec<_> = op.inputs.iter().map(|input| &graph.value(*input).ty).collect();
            let declared = &graph.value(op.output).ty;
            match op.kind.infer(&types) {
                Err(message) => self.at(op.output, message),
                Ok(ty) if ty != *declared => {
                    self.at(op.output, format!("it is declared {declared}, but {} gives {ty}", op.kind.name()));
                }
                Ok(_) => {}
            }
        }
    }

    fn check_states(&mut self) {
        let graph = self.graph;
        for (id, value) in graph.value_ids().zip(graph.values()).filter(|(_, value)| value.ty.kv_cache().is_some()) {
            let users = graph.users(id);
            let writes = |op: &OpId| matches!(graph.op(*op).kind, OpKind::KvWrite);
            if let (true, Some(reader)) = (users.len() > 1, users.iter().find(|user| writes(user))) {
                let other = users.iter().find(|user| *user != reader).unwrap_or(reader);
                let (other, writer) = (graph.op(*other).output, graph.op(*reader).output);
                let (writer, name) = (self.name(writer).to_owned(), &value.name);
                self.at(
                    other,
                    format!("it uses %{name}, which %{writer} writes: what comes after a write reads its result"),
                );
            }
            if graph.outputs().contains(&id) {
                let message = format!("%{} is a state, and no state leaves the step", value.name);
                self.found.push(Problem { place: Place::Outputs, message });
            }
        }
    }

    fn check_groups(&mut self) {
        let graph = self.graph;
        let mut seen = vec![false; graph.ops().len()];
        for (index, group) in graph.groups().iter().enumerate() {
            for op in &group.ops {
                let output = graph.op(*op).output;
                if std::mem::replace(&mut seen[op.index()], true) {
                    self.at(output, "it is in more than one group".to_owned());
                }
                for input in &graph.op(*op).inputs {
                    let from = graph.producer(*input).map(|producer| graph.group_of(producer));
                    if from.is_some_and(|from| from > index && from < graph.groups().len()) {
                        self.at(output, format!("its launch reads %{} of a later one", self.name(*input)));
                    }
                }
            }
            if !group.ops.is_sorted() {
                let message = "its operations are not in the order in which they are defined".to_owned();
                let place = match group.ops.as_slice() {
                    [op] => Place::Value(graph.op(*op).output),
                    _ => Place::Group(index),
                };
                self.found.push(Problem { place, message });
            }
        }
        for (index, _) in seen.iter().enumerate().filter(|(_, seen)| !**seen) {
            self.at(graph.ops()[index].output, "it is in no group".to_owned());
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::graph::Group;
    use crate::text::parse;

    /// What is wrong with three operations in these groups: groups that the text form can't say.
    fn grouped(groups: &[&[u32]]) -> String {
        let text = "graph {\n  input %token_ids: i32[T]\n  weight %table: bf16[4, 8]\n  \
                    %x: bf16[T, 8] = embedding(%table, %token_ids)\n  %y: bf16[T, 8] = silu(%x)\n  \
                    %z: bf16[T, 8] = silu(%y)\n  return %z\n}";
        let graph = parse(text).unwrap();
        let groups = groups.iter().map(|ops| Group { ops: ops.iter().map(|op| OpId(*op)).collect() }).collect();
        let (values, ops) = (graph.values().to_vec(), graph.ops().to_vec());
        let graph = Graph::from_parts(values, ops, groups, graph.outputs().to_vec(), Vec::new());
        verify(&graph).map_or_else(|error| error.to_string(), |()| "sound".to_owned())
    }

    #[test]
    fn groups_partition_the_operations_in_order() {
        assert_eq!(grouped(&[&[0, 1], &[2]]), "sound");
        for (groups, problem) in [
            (&[&[0, 1][..], &[1, 2]][..], "it is in more than one group"),
            (&[&[0], &[2]], "it is in no group"),
            (&[&[1, 0], &[2]], "its operations are not in the order in which they are defined"),
            (&[&[0], &[2], &[1]], "its launch reads %y of a later one"),
            (&[&[0, 2], &[1]], "its launch reads %y of a later one"),
        ] {
            let found = grouped(groups);
            assert!(found.contains(problem), "{groups:?}: {found}");
        }
    }
}
