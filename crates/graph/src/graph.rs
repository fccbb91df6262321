//! The graph: values in SSA form, operations in an order that respects them, and the groups that run as one launch.

use crate::op::{Input, OpKind};
use crate::types::{KvCacheType, TensorType, ValueType};

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
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Graph {
    values: Vec<Value>,
    ops: Vec<Op>,
    groups: Vec<Group>,
    group_of: Vec<usize>,
    outputs: Vec<ValueId>,
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

    /// The place of an operation's group in [`Graph::groups`].
    pub fn group_of(&self, op: OpId) -> usize {
        self.group_of[op.index()]
    }

    /// For every value the operations that read it, in order.
    pub fn users(&self) -> Vec<Vec<OpId>> {
        let mut users = vec![Vec::new(); self.values.len()];
        for (index, op) in self.ops.iter().enumerate() {
            for input in &op.inputs {
                let list: &mut Vec<OpId> = &mut users[input.index()];
                let id = OpId(index as u32);
                if list.last() != Some(&id) {
                    list.push(id);
                }
            }
        }
        users
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

    /// Adds a tensor of the checkpoint, or gives the one of that name.
    pub fn weight(&mut self, name: &str, ty: TensorType) -> ValueId {
        self.leaf(name.to_string(), ValueType::Tensor(ty), Definition::Weight(name.to_string()))
    }

    /// Adds a layer's KV cache, or gives the one of that layer.
    pub fn state(&mut self, layer: usize, ty: KvCacheType) -> ValueId {
        self.leaf(format!("layers.{layer}.kv_cache"), ValueType::KvCache(ty), Definition::State { layer })
    }

    fn leaf(&mut self, name: String, ty: ValueType, definition: Definition) -> ValueId {
        if let Some(index) = self.values.iter().position(|value| value.definition == definition) {
            return ValueId(index as u32);
        }
        self.push_value(name, ty, definition)
    }

    fn push_value(&mut self, name: String, ty: ValueType, definition: Definition) -> ValueId {
        let id = ValueId(self.values.len() as u32);
        self.values.push(Value { name, ty, definition });
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
        self.group_of.push(self.groups.len());
        self.groups.push(Group { ops: vec![id] });
        Ok(output)
    }

    /// Marks a value as a result of the step.
    pub fn add_output(&mut self, value: ValueId) {
        self.outputs.push(value);
    }

    /// Puts every operation back into a group of its own.
    pub fn flatten(&mut self) {
        self.groups = (0..self.ops.len()).map(|index| Group { ops: vec![OpId(index as u32)] }).collect();
        self.group_of = (0..self.ops.len()).collect();
    }

    /// Joins groups into one launch, moving the groups between them before or after it as their operands ask.
    /// Gives the place of the joined group, or `None` where joining would make a cycle; then nothing changes.
    ///
    /// The cost is the number of operations between the first and the last of the groups.
    pub fn merge(&mut self, members: &[usize]) -> Option<usize> {
        let (first, last) = (*members.iter().min()?, *members.iter().max()?);
        if first == last {
            return Some(first);
        }
        let mut after = vec![false; last - first + 1];
        for place in first..=last {
            let is_member = members.contains(&place);
            let depends = self.groups[place].ops.iter().flat_map(|op| &self.op(*op).inputs).any(|input| {
                self.producer(*input).is_some_and(|producer| {
                    let from = self.group_of(producer);
                    from >= first && from < place && (after[from - first] || (!is_member && members.contains(&from)))
                })
            });
            if depends && is_member {
                return None;
            }
            after[place - first] = depends;
        }
        let window: Vec<Group> = self.groups.drain(first..=last).collect();
        let mut joined = Group { ops: Vec::new() };
        let (mut before_groups, mut after_groups) = (Vec::new(), Vec::new());
        for (offset, group) in window.into_iter().enumerate() {
            if members.contains(&(first + offset)) {
                joined.ops.extend(group.ops);
            } else if after[offset] {
                after_groups.push(group);
            } else {
                before_groups.push(group);
            }
        }
        joined.ops.sort_unstable();
        let place = first + before_groups.len();
        let replacement = before_groups.into_iter().chain([joined]).chain(after_groups);
        self.groups.splice(first..first, replacement);
        for place in first..self.groups.len() {
            for op in &self.groups[place].ops {
                self.group_of[op.index()] = place;
            }
        }
        Some(place)
    }

    /// Keeps only the operations for which `keep` is true, after every use of a value `v` has become
    /// `replacement[v]`; then drops values that nothing refers to and puts every operation into a group of its own.
    /// For the rewrites that touch operations; each must prove that what it replaces has the same bits.
    pub(crate) fn retain(&mut self, replacement: &[ValueId], keep: impl Fn(OpId) -> bool) {
        let resolve = |mut id: ValueId| {
            while replacement[id.index()] != id {
                id = replacement[id.index()];
            }
            id
        };
        let mut old = std::mem::take(self);
        for output in &mut old.outputs {
            *output = resolve(*output);
        }
        for op in &mut old.ops {
            for input in &mut op.inputs {
                *input = resolve(*input);
            }
        }
        let kept: Vec<bool> = (0..old.ops.len()).map(|index| keep(OpId(index as u32))).collect();
        let mut used = vec![false; old.values.len()];
        for (op, _) in old.ops.iter().zip(&kept).filter(|(_, kept)| **kept) {
            used[op.output.index()] = true;
            op.inputs.iter().for_each(|input| used[input.index()] = true);
        }
        old.outputs.iter().for_each(|output| used[output.index()] = true);

        let mut op_ids = vec![OpId(0); old.ops.len()];
        let kept_ids = op_ids.iter_mut().zip(&kept).filter(|(_, kept)| **kept);
        for (next, (id, _)) in kept_ids.enumerate() {
            *id = OpId(next as u32);
        }
        let mut value_ids = vec![ValueId(0); old.values.len()];
        for (index, mut value) in old.values.into_iter().enumerate().filter(|(index, _)| used[*index]) {
            if let Definition::Op(op) = &mut value.definition {
                *op = op_ids[op.index()];
            }
            value_ids[index] = ValueId(self.values.len() as u32);
            self.values.push(value);
        }
        for (mut op, _) in old.ops.into_iter().zip(kept).filter(|(_, kept)| *kept) {
            op.output = value_ids[op.output.index()];
            op.inputs.iter_mut().for_each(|input| *input = value_ids[input.index()]);
            self.ops.push(op);
        }
        self.outputs = old.outputs.iter().map(|output| value_ids[output.index()]).collect();
        self.flatten();
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
