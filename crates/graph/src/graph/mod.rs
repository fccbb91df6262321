//! The graph: values in SSA form, operations in an order that respects them, and the groups that run as one launch.

mod equality;
mod regroup;
mod rewrite;

use std::collections::HashMap;

use crate::history::PassReport;
use crate::op::{Input, OpKind};
use crate::types::{Dim, KvCacheType, TensorType, ValueType};

pub use regroup::RegroupError;
pub(crate) use rewrite::Rewriting;

/// Names a value of one graph.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ValueId(pub u32);

/// Names an operation of one graph.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct OpId(pub u32);

impl ValueId {
    /// The value's place in [`Graph::values`].
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

impl OpId {
    /// The operation's place in [`Graph::ops`].
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

/// Where a value comes from.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Definition {
    /// An input of the step.
    Input(Input),
    /// A tensor of the checkpoint, by its name there.
    Weight(String),
    /// The KV cache of a layer as the step finds it.
    State {
        /// The decoder layer, from 0.
        layer: usize,
    },
    /// The result of an operation.
    Op(OpId),
}

/// A value: its name, type and definition.
#[derive(Debug, Clone, PartialEq)]
pub struct Value {
    /// A readable name, unique in the graph: `layers.3.q_proj`.
    pub name: String,
    /// The type.
    pub ty: ValueType,
    /// Where it comes from.
    pub definition: Definition,
}

/// An operation with its operands and its one result.
#[derive(Debug, Clone, PartialEq)]
pub struct Op {
    /// What it does.
    pub kind: OpKind,
    /// Its operands, in the order that [`OpKind`] documents.
    pub inputs: Vec<ValueId>,
    /// Its result.
    pub output: ValueId,
}

/// The operations that one launch runs, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    /// The operations, in an order that respects their operands.
    pub ops: Vec<OpId>,
}

/// A model's step as a graph.
///
/// `groups` partitions `ops` and is in launch order. A fusion pass changes `groups` only, so dropping them
/// ([`Graph::flatten`]) gives back the graph that went into fusion.
///
/// Ids belong to one graph: methods panic on an id that is beyond what the graph has.
///
/// Two graphs are equal if they have the same values, operations, groups in the same launch order, and outputs, by name:
/// the numbers that ids have, and the history of passes, are not part of what a graph means.
#[derive(Debug, Clone, Default)]
pub struct Graph {
    values: Vec<Value>,
    ops: Vec<Op>,
    groups: Vec<Group>,
    group_of: Vec<usize>,
    outputs: Vec<ValueId>,
    /// By value, the operations that read it, in order.
    users: Vec<Vec<OpId>>,
    /// Values that are no results of operations, to find them again.
    leaves: HashMap<Definition, ValueId>,
    history: Vec<PassReport>,
}

impl Graph {
    /// An empty graph.
    pub fn new() -> Self {
        Graph::default()
    }

    /// All values.
    pub fn values(&self) -> &[Value] {
        &self.values
    }

    /// All operations, each after those that its operands come from.
    pub fn ops(&self) -> &[Op] {
        &self.ops
    }

    /// All groups, in launch order.
    pub fn groups(&self) -> &[Group] {
        &self.groups
    }

    /// The ids of all values, in order.
    pub fn value_ids(&self) -> impl DoubleEndedIterator<Item = ValueId> + Clone + use<> {
        (0..self.values.len() as u32).map(ValueId)
    }

    /// The ids of all operations, in order.
    pub fn op_ids(&self) -> impl DoubleEndedIterator<Item = OpId> + Clone + use<> {
        (0..self.ops.len() as u32).map(OpId)
    }

    /// The values that the step yields.
    pub fn outputs(&self) -> &[ValueId] {
        &self.outputs
    }

    /// A value.
    pub fn value(&self, id: ValueId) -> &Value {
        &self.values[id.index()]
    }

    /// An operation.
    pub fn op(&self, id: OpId) -> &Op {
        &self.ops[id.index()]
    }

    /// The tensor type of a value, if it is a tensor.
    pub fn tensor_type(&self, id: ValueId) -> Option<&TensorType> {
        self.value(id).ty.tensor()
    }

    /// The operation that yields a value, if one does.
    pub fn producer(&self, id: ValueId) -> Option<OpId> {
        match self.value(id).definition {
            Definition::Op(op) => Some(op),
            _ => None,
        }
    }

    /// The layer whose KV cache a value is, before or after writes; `None` if it is none.
    pub fn cache_layer(&self, mut id: ValueId) -> Option<usize> {
        loop {
            match &self.value(id).definition {
                Definition::State { layer } => return Some(*layer),
                Definition::Op(op) => id = *self.op(*op).inputs.first()?,
                Definition::Input(_) | Definition::Weight(_) => return None,
            }
        }
    }

    /// The place of an operation's group in [`Graph::groups`]; `usize::MAX` for an operation in no group, which a graph that
    /// [`verify`](crate::verify::verify) accepts does not have.
    pub fn group_of(&self, op: OpId) -> usize {
        self.group_of[op.index()]
    }

    /// The operations that read a value, in order.
    pub fn users(&self, id: ValueId) -> &[OpId] {
        &self.users[id.index()]
    }

    /// What the passes did to this graph, in the order in which they ran.
    pub fn history(&self) -> &[PassReport] {
        &self.history
    }

    pub(crate) fn record(&mut self, report: PassReport) {
        self.history.push(report);
    }

    /// The symbolic size that an operation runs over: [`Dim::Tokens`] or [`Dim::LogitRows`].
    ///
    /// # Errors
    /// In words, why it is neither: then the operation has no place in a batch.
    pub fn rows_of(&self, op: OpId) -> Result<Dim, String> {
        let op = self.op(op);
        let value = match op.kind {
            // Its result is the cache; it runs over the rows of the keys.
            OpKind::KvWrite => op.inputs.get(1).copied().unwrap_or(op.output),
            _ => op.output,
        };
        match self.tensor_type(value).map(TensorType::rows) {
            Some(rows @ (Dim::Tokens | Dim::LogitRows)) => Ok(rows),
            Some(rows) => Err(format!("{} over {rows} rows: only T and R are batch sizes", op.kind.name())),
            None => Err(format!("{} yields no tensor", op.kind.name())),
        }
    }

    /// The values that a group reads and does not yield itself, in order of first use.
    pub fn group_inputs(&self, group: &Group) -> Vec<ValueId> {
        let mut inputs = Vec::new();
        for op in &group.ops {
            for &input in &self.op(*op).inputs {
                let inside = self.producer(input).is_some_and(|producer| group.ops.contains(&producer));
                if !inside && !inputs.contains(&input) {
                    inputs.push(input);
                }
            }
        }
        inputs
    }

    /// Adds an input of the step, or gives the one that is there.
    pub fn input(&mut self, input: Input) -> ValueId {
        self.leaf(input.name().to_string(), ValueType::Tensor(input.tensor_type()), Definition::Input(input))
    }

    /// Adds a tensor of the checkpoint, or gives the one of that name. Asked for with another type, it adds a second value,
    /// which [`verify`](crate::verify::verify) refuses.
    pub fn weight(&mut self, name: &str, ty: TensorType) -> ValueId {
        self.leaf(name.to_string(), ValueType::Tensor(ty), Definition::Weight(name.to_string()))
    }

    /// Adds a layer's KV cache, or gives the one of that layer; of another type as [`Graph::weight`].
    pub fn state(&mut self, layer: usize, ty: KvCacheType) -> ValueId {
        self.leaf(format!("layers.{layer}.kv_cache"), ValueType::KvCache(ty), Definition::State { layer })
    }

    /// Bytes that one token takes in the KV caches of all layers.
    pub fn kv_bytes_per_token(&self) -> usize {
        let states = self.values.iter().filter(|value| matches!(value.definition, Definition::State { .. }));
        let caches = states.filter_map(|value| value.ty.kv_cache());
        caches.fold(0, |sum, cache| sum.saturating_add(cache.bytes_per_token()))
    }

    fn leaf(&mut self, name: String, ty: ValueType, definition: Definition) -> ValueId {
        // Asked for again with another type, it is another value, which the verifier will not have.
        if let Some(known) = self.leaves.get(&definition).filter(|known| self.value(**known).ty == ty) {
            return *known;
        }
        let id = self.push_value(name, ty, definition.clone());
        self.leaves.entry(definition).or_insert(id);
        id
    }

    fn push_value(&mut self, name: String, ty: ValueType, definition: Definition) -> ValueId {
        let id = ValueId(self.values.len() as u32);
        self.values.push(Value { name, ty, definition });
        self.users.push(Vec::new());
        id
    }

    /// Appends an operation in a group of its own and gives its result.
    ///
    /// # Errors
    /// Says which rule the operands break ([`OpKind::infer`]).
    pub fn push(&mut self, name: impl Into<String>, kind: OpKind, inputs: &[ValueId]) -> Result<ValueId, GraphError> {
        let name = name.into();
        let types: Vec<&ValueType> = inputs.iter().map(|input| &self.value(*input).ty).collect();
        let ty = kind.infer(&types).map_err(|message| GraphError { value: name.clone(), message })?;
        let id = OpId(self.ops.len() as u32);
        let output = self.push_value(name, ty, Definition::Op(id));
        self.ops.push(Op { kind, inputs: inputs.to_vec(), output });
        self.note_users(id);
        self.group_of.push(self.groups.len());
        self.groups.push(Group { ops: vec![id] });
        Ok(output)
    }

    /// Enters an operation among the users of its operands.
    fn note_users(&mut self, id: OpId) {
        for input in &self.ops[id.index()].inputs {
            let users = &mut self.users[input.index()];
            if users.last() != Some(&id) {
                users.push(id);
            }
        }
    }

    /// A graph from its parts as somebody wrote them down, which only [`verify`](crate::verify::verify) can call sound.
    /// All ids must be in range; operations in no group are in none.
    pub(crate) fn from_parts(
        values: Vec<Value>,
        ops: Vec<Op>,
        groups: Vec<Group>,
        outputs: Vec<ValueId>,
        history: Vec<PassReport>,
    ) -> Self {
        let mut graph =
            Graph { users: vec![Vec::new(); values.len()], values, ops, outputs, history, ..Graph::default() };
        for (index, value) in graph.values.iter().enumerate() {
            if !matches!(value.definition, Definition::Op(_)) {
                graph.leaves.entry(value.definition.clone()).or_insert(ValueId(index as u32));
            }
        }
        graph.op_ids().for_each(|op| graph.note_users(op));
        graph.set_groups(groups);
        graph
    }

    /// Replaces the groups, and enters each operation in the group that holds it.
    fn set_groups(&mut self, groups: Vec<Group>) {
        self.groups = groups;
        self.group_of = vec![usize::MAX; self.ops.len()];
        for (index, group) in self.groups.iter().enumerate() {
            group.ops.iter().for_each(|op| self.group_of[op.index()] = index);
        }
    }

    /// Marks a value as a result of the step.
    pub fn add_output(&mut self, value: ValueId) {
        self.outputs.push(value);
    }
}

/// An operation that can't be added, because its operands break a rule.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("graph: %{value} = {message}")]
pub struct GraphError {
    /// The name of the value that was to be defined.
    pub value: String,
    /// The rule that was broken.
    pub message: String,
}
