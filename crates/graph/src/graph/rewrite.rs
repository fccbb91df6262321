//! The edits that the rewrites make: operations replaced, dropped, renumbered.

use super::{Definition, Graph, Group, Op, OpId, ValueId};

/// The operations of a flat graph while rules rewrite them, in order.
pub(crate) struct Rewriting {
    /// For each value what stands for it now.
    replacement: Vec<ValueId>,
    /// The operations as they are now.
    pub(crate) ops: Vec<Op>,
    dropped: Vec<bool>,
}

impl Rewriting {
    pub(crate) fn of(graph: &Graph) -> Self {
        Rewriting {
            replacement: graph.value_ids().collect(),
            ops: graph.ops.clone(),
            dropped: vec![false; graph.ops.len()],
        }
    }

    /// What stands for a value now.
    pub(crate) fn resolve(&self, mut id: ValueId) -> ValueId {
        while self.replacement[id.index()] != id {
            id = self.replacement[id.index()];
        }
        id
    }

    /// Makes the operands of an operation those that stand for them now, and gives the operation.
    pub(crate) fn settled(&mut self, op: OpId) -> &Op {
        for index in 0..self.ops[op.index()].inputs.len() {
            self.ops[op.index()].inputs[index] = self.resolve(self.ops[op.index()].inputs[index]);
        }
        &self.ops[op.index()]
    }

    /// Drops an operation; `value`, which comes before it, has the same bits as its result.
    pub(crate) fn replace(&mut self, op: OpId, value: ValueId) {
        self.replacement[self.ops[op.index()].output.index()] = value;
        self.dropped[op.index()] = true;
    }

    /// Drops an operation whose result nothing reads.
    pub(crate) fn drop(&mut self, op: OpId) {
        self.dropped[op.index()] = true;
    }

    pub(crate) fn is_dropped(&self, op: OpId) -> bool {
        self.dropped[op.index()]
    }

    /// Puts what was rewritten into the graph, each operation in a group of its own. Values that nothing refers to any
    /// more are dropped.
    pub(crate) fn finish(mut self, graph: &mut Graph) {
        let mut old = std::mem::take(graph);
        old.outputs.iter_mut().for_each(|output| *output = self.resolve(*output));
        (0..self.ops.len()).for_each(|index| {
            self.settled(OpId(index as u32));
        });
        let kept: Vec<Op> =
            self.ops.into_iter().zip(&self.dropped).filter(|(_, dropped)| !**dropped).map(|(op, _)| op).collect();
        let mut used = vec![false; old.values.len()];
        for op in &kept {
            used[op.output.index()] = true;
            op.inputs.iter().for_each(|input| used[input.index()] = true);
        }
        old.outputs.iter().for_each(|output| used[output.index()] = true);
        let mut ids = vec![ValueId(0); old.values.len()];
        let mut values = Vec::with_capacity(old.values.len());
        for (index, value) in old.values.into_iter().enumerate().filter(|(index, _)| used[*index]) {
            ids[index] = ValueId(values.len() as u32);
            values.push(value);
        }
        let renumbered = |list: Vec<ValueId>| list.into_iter().map(|id| ids[id.index()]).collect::<Vec<_>>();
        let mut ops = Vec::with_capacity(kept.len());
        for op in kept {
            let output = ids[op.output.index()];
            values[output.index()].definition = Definition::Op(OpId(ops.len() as u32));
            ops.push(Op { kind: op.kind, inputs: renumbered(op.inputs), output });
        }
        let outputs = renumbered(old.outputs);
        let groups = (0..ops.len()).map(|index| Group { ops: vec![OpId(index as u32)] }).collect();
        *graph = Graph::from_parts(values, ops, groups, outputs, old.history);
    }
}
