//! Moving operations between groups: the one thing that a grouping pass does.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::{Graph, Group, OpId};

/// Why operations can't be moved into one group. The graph is as it was.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RegroupError {
    /// An operation outside the group needs a result of it, and is needed by it.
    #[error("one launch would need the result of %{0}, which needs a result of that launch")]
    Cycle(String),
    /// What would be left of the groups that operations are taken out of are more launches than there are now.
    #[error("it would take more launches than now")]
    MoreLaunches,
}

/// A set of operations that is to be one group: the new group, what is left of an old one, or one that stays as it is.
struct Unit {
    ops: Vec<OpId>,
    /// Where the unit would like to be: as the launches are now.
    place: usize,
    /// Units that must come first, not yet placed.
    waits_for: usize,
    /// Units that wait for this one.
    unlocks: Vec<usize>,
}

impl Graph {
    /// True if every operation is in a group of its own, in order.
    pub fn is_flat(&self) -> bool {
        self.groups.len() == self.ops.len()
            && self.groups.iter().zip(self.op_ids()).all(|(group, op)| group.ops == [op])
    }

    /// Puts every operation back into a group of its own, in the order of the operations.
    pub fn flatten(&mut self) {
        self.set_groups(self.op_ids().map(|op| Group { ops: vec![op] }).collect());
    }

    /// Puts the groups into another order, a permutation of their places that respects their operands.
    pub(crate) fn reorder_groups(&mut self, order: &[usize]) {
        let mut old: Vec<Group> = std::mem::take(&mut self.groups);
        self.set_groups(order.iter().map(|place| Group { ops: std::mem::take(&mut old[*place].ops) }).collect());
    }

    /// Makes one group of `ops`, taking them out of the groups that they are in and moving the launches in between
    /// before or after it as their operands ask.
    ///
    /// # Errors
    /// If that would make a cycle, or more launches than there are now. Then nothing changes.
    pub fn regroup(&mut self, ops: &[OpId]) -> Result<(), RegroupError> {
        self.move_into_one_group(ops)?;
        self.drop_empty_groups();
        Ok(())
    }

    /// [`Graph::regroup`] that may leave empty groups behind, which [`Graph::drop_empty_groups`] removes. The cost is
    /// the number of operations between the first and the last of the groups, so many calls and one removal are linear
    /// in the size of the graph.
    pub(crate) fn move_into_one_group(&mut self, ops: &[OpId]) -> Result<(), RegroupError> {
        let mut ops = ops.to_vec();
        ops.sort_unstable();
        ops.dedup();
        let places = ops.iter().map(|op| self.group_of(*op));
        let (Some(first), Some(last)) = (places.clone().min(), places.max()) else { return Ok(()) };
        let mut units = self.units(&ops, first, last);
        if units.len() > last + 1 - first {
            return Err(RegroupError::MoreLaunches);
        }
        let order = self.order(&mut units, &ops, first, last)?;
        let mut slots: Vec<Vec<OpId>> = order.into_iter().map(|unit| std::mem::take(&mut units[unit].ops)).collect();
        slots.resize(last + 1 - first, Vec::new());
        for (offset, ops) in slots.into_iter().enumerate() {
            ops.iter().for_each(|op| self.group_of[op.index()] = first + offset);
            self.groups[first + offset] = Group { ops };
        }
        Ok(())
    }

    /// Removes the empty groups that [`Graph::move_into_one_group`] leaves behind.
    pub(crate) fn drop_empty_groups(&mut self) {
        if self.groups.iter().any(|group| group.ops.is_empty()) {
            let groups = std::mem::take(&mut self.groups);
            self.set_groups(groups.into_iter().filter(|group| !group.ops.is_empty()).collect());
        }
    }

    /// The new group, last in the list, and all others between two places.
    fn units(&self, ops: &[OpId], first: usize, last: usize) -> Vec<Unit> {
        let unit = |ops: Vec<OpId>, place: usize| Unit { ops, place, waits_for: 0, unlocks: Vec::new() };
        let mut units = Vec::new();
        for place in first..=last {
            let left = self.groups[place].ops.iter().copied().filter(|op| ops.binary_search(op).is_err());
            let left: Vec<OpId> = left.collect();
            if !left.is_empty() {
                units.push(unit(left, place));
            }
        }
        units.push(unit(ops.to_vec(), last));
        units
    }

    /// An order of the units that respects their operands and is near the present one.
    fn order(&self, units: &mut [Unit], ops: &[OpId], first: usize, last: usize) -> Result<Vec<usize>, RegroupError> {
        let new = units.len() - 1;
        let mut unit_at = vec![new; last + 1 - first];
        units[..new].iter().enumerate().for_each(|(index, unit)| unit_at[unit.place - first] = index);
        for index in 0..units.len() {
            let mut needed: Vec<usize> = Vec::new();
            for op in &units[index].ops {
                for producer in self.op(*op).inputs.iter().filter_map(|input| self.producer(*input)) {
                    let place = self.group_of(producer);
                    let unit = match (first..=last).contains(&place) {
                        true if ops.binary_search(&producer).is_ok() => new,
                        true => unit_at[place - first],
                        false => continue,
                    };
                    if unit != index && !needed.contains(&unit) {
                        needed.push(unit);
                    }
                }
            }
            units[index].waits_for = needed.len();
            needed.into_iter().for_each(|unit| units[unit].unlocks.push(index));
        }
        let key = |units: &[Unit], index: usize| Reverse((units[index].place, index));
        let mut ready: BinaryHeap<_> =
            (0..units.len()).filter(|index| units[*index].waits_for == 0).map(|index| key(units, index)).collect();
        let mut order = Vec::with_capacity(units.len());
        while let Some(Reverse((_, index))) = ready.pop() {
            order.push(index);
            for unlocked in std::mem::take(&mut units[index].unlocks) {
                units[unlocked].waits_for -= 1;
                if units[unlocked].waits_for == 0 {
                    ready.push(key(units, unlocked));
                }
            }
        }
        if order.len() < units.len() {
            let between = (0..new).find(|unit| reaches(units, new, *unit) && reaches(units, *unit, new));
            let op = between.and_then(|unit| units[unit].ops.first());
            let name = op.map_or_else(String::new, |op| self.value(self.op(*op).output).name.clone());
            return Err(RegroupError::Cycle(name));
        }
        Ok(order)
    }
}

/// Whether a unit that could not be placed waits, by way of others, for `from`.
fn reaches(units: &[Unit], from: usize, to: usize) -> bool {
    let mut seen = vec![false; units.len()];
    let mut open = vec![from];
    while let Some(unit) = open.pop() {
        for &next in &units[unit].unlocks {
            if next == to {
                return true;
            }
            if !std::mem::replace(&mut seen[next], true) {
                open.push(next);
            }
        }
    }
    false
}
