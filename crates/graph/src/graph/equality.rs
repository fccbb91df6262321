//! When two graphs are the same: by name, whatever their ids.

use std::collections::HashMap;

use super::{Definition, Graph, Group, ValueId};

impl PartialEq for Graph {
    fn eq(&self, other: &Self) -> bool {
        let same_sizes = self.values.len() == other.values.len()
            && self.ops.len() == other.ops.len()
            && self.groups.len() == other.groups.len();
        if !same_sizes {
            return false;
        }
        let by_name: HashMap<&str, ValueId> = other.value_ids().map(|id| (&*other.value(id).name, id)).collect();
        let same_value = |id: ValueId, in_other: ValueId| self.value(id).name == other.value(in_other).name;
        let same_list = |ids: &[ValueId], in_other: &[ValueId]| {
            ids.len() == in_other.len() && ids.iter().zip(in_other).all(|(id, other)| same_value(*id, *other))
        };
        let same_definition = |id: ValueId| {
            let value = self.value(id);
            let Some(found) = by_name.get(&*value.name) else { return false };
            let found = other.value(*found);
            value.ty == found.ty
                && match (&value.definition, &found.definition) {
                    (Definition::Op(op), Definition::Op(in_other)) => {
                        let (op, in_other) = (self.op(*op), other.op(*in_other));
                        op.kind.identity() == in_other.kind.identity() && same_list(&op.inputs, &in_other.inputs)
                    }
                    (definition, found) => definition == found,
                }
        };
        let same_group = |group: &Group, in_other: &Group| {
            let outputs = |graph: &Graph, group: &Group| -> Vec<ValueId> {
                group.ops.iter().map(|op| graph.op(*op).output).collect()
            };
            same_list(&outputs(self, group), &outputs(other, in_other))
        };
        self.value_ids().all(same_definition)
            && self.groups.iter().zip(&other.groups).all(|(group, in_other)| same_group(group, in_other))
            && same_list(&self.outputs, &other.outputs)
    }
}
