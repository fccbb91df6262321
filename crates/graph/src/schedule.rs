//! The order of launches: of those orders that the operands allow, one in which fewer bytes are alive at once.
//!
//! Launches move within their piece only, so a step keeps its launches and its pieces. In each piece the launch is taken
//! next that adds the fewest bytes (what it makes, less what it reads for the last time), the earlier one where two add
//! as many; a piece keeps its order unless that lowers its peak.

use std::collections::HashMap;

use crate::graph::{Graph, ValueId};
use crate::memory::MemoryPlan;
use crate::partition::{SplittingOps, partition};
use crate::types::Sizes;

/// What scheduling did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ScheduleReport {
    /// Launches that have another place now.
    pub moved: usize,
    /// The most bytes of values between launches that were alive at once.
    pub peak_before: usize,
    /// The same now.
    pub peak_after: usize,
}

/// Orders the launches of each piece such that the peak of live bytes at `limits` is not above what it was.
pub fn schedule(graph: &mut Graph, limits: &Sizes, splitting_ops: &SplittingOps) -> ScheduleReport {
    let peak_before = peak(graph, limits, 0..graph.groups().len());
    let mut order: Vec<usize> = Vec::with_capacity(graph.groups().len());
    for piece in partition(graph, splitting_ops) {
        let original: Vec<usize> = piece.groups.collect();
        let greedy = greedy(graph, limits, &original);
        let better = peak(graph, limits, greedy.iter().copied()) < peak(graph, limits, original.iter().copied());
        order.extend(if better { greedy } else { original });
    }
    let moved = order.iter().enumerate().filter(|(place, group)| place != *group).count();
    if moved > 0 {
        graph.reorder_groups(&order);
    }
    let peak_after = peak(graph, limits, 0..graph.groups().len());
    ScheduleReport { moved, peak_before, peak_after }
}

/// Bytes of a value between launches; 0 for what no launch hands to another.
fn bytes(graph: &Graph, limits: &Sizes, value: ValueId) -> usize {
    let tensor = graph.tensor_type(value).filter(|_| MemoryPlan::crosses_launches(graph, value));
    tensor.and_then(|tensor| tensor.bytes(limits)).unwrap_or(0)
}

/// Values that a launch makes, and those that it reads from others, each once.
fn made_and_read(graph: &Graph, group: usize) -> (Vec<ValueId>, Vec<ValueId>) {
    let ops = &graph.groups()[group];
    (ops.ops.iter().map(|op| graph.op(*op).output).collect(), graph.group_inputs(ops))
}

/// How many launches have yet to read a value; outputs are read at the end by one more.
fn readers(graph: &Graph, value: ValueId) -> usize {
    let mut places: Vec<usize> = graph.users(value).iter().map(|user| graph.group_of(*user)).collect();
    places.sort_unstable();
    places.dedup();
    let own = graph.producer(value).map(|op| graph.group_of(op));
    places.iter().filter(|place| Some(**place) != own).count() + usize::from(graph.outputs().contains(&value))
}

/// The peak of bytes that launches in this order make and do not yet free, over what was alive before them.
fn peak(graph: &Graph, limits: &Sizes, order: impl Iterator<Item = usize>) -> usize {
    let mut live = Liveness::new(graph, limits);
    let (mut peak, mut now) = (0isize, 0isize);
    for group in order {
        let (made, freed) = live.step(group);
        peak = peak.max(now.saturating_add_unsigned(made));
        now = now.saturating_add_unsigned(made).saturating_sub_unsigned(freed);
    }
    usize::try_from(peak).unwrap_or(0)
}

/// What is alive while launches run one after the other.
struct Liveness<'a> {
    graph: &'a Graph,
    limits: &'a Sizes,
    /// Launches that have read each value so far.
    read: HashMap<ValueId, usize>,
}

impl<'a> Liveness<'a> {
    fn new(graph: &'a Graph, limits: &'a Sizes) -> Self {
        Liveness { graph, limits, read: HashMap::new() }
    }

    /// Bytes that a launch would make and free.
    fn change(&self, group: usize) -> (usize, usize) {
        let (made, read) = made_and_read(self.graph, group);
        let size = |value: &ValueId| bytes(self.graph, self.limits, *value);
        let last = |value: &&ValueId| {
            let so_far = self.read.get(*value).copied().unwrap_or(0);
            readers(self.graph, **value) == so_far + 1
        };
        let sum = |values: &mut dyn Iterator<Item = usize>| values.fold(0usize, usize::saturating_add);
        (sum(&mut made.iter().map(size)), sum(&mut read.iter().filter(last).map(size)))
    }

    /// Runs a launch, and gives the bytes that it made and freed.
    fn step(&mut self, group: usize) -> (usize, usize) {
        let change = self.change(group);
        for value in made_and_read(self.graph, group).1 {
            *self.read.entry(value).or_default() += 1;
        }
        change
    }
}

/// The launches of a piece, each time the one that adds the fewest bytes.
fn greedy(graph: &Graph, limits: &Sizes, piece: &[usize]) -> Vec<usize> {
    let (Some(&first), Some(&last)) = (piece.first(), piece.last()) else { return Vec::new() };
    let mut waits_for = vec![0usize; piece.len()];
    let mut unlocks: Vec<Vec<usize>> = vec![Vec::new(); piece.len()];
    for (index, &group) in piece.iter().enumerate() {
        let producers = made_and_read(graph, group).1.into_iter().filter_map(|value| graph.producer(value));
        let mut places: Vec<usize> = producers.map(|op| graph.group_of(op)).collect();
        places.sort_unstable();
        places.dedup();
        for place in places.into_iter().filter(|place| (first..=last).contains(place)) {
            waits_for[index] += 1;
            unlocks[place - first].push(index);
        }
    }
    let mut ready: Vec<usize> = (0..piece.len()).filter(|index| waits_for[*index] == 0).collect();
    let mut live = Liveness::new(graph, limits);
    let mut order = Vec::with_capacity(piece.len());
    let added = |live: &Liveness<'_>, index: usize| {
        let (made, freed) = live.change(first + index);
        isize::try_from(made).unwrap_or(isize::MAX).saturating_sub_unsigned(freed)
    };
    while let Some(place) = (0..ready.len()).min_by_key(|place| (added(&live, ready[*place]), ready[*place])) {
        let next = ready.swap_remove(place);
        live.step(first + next);
        order.push(first + next);
        for &unlocked in &unlocks[next] {
            waits_for[unlocked] -= 1;
            if waits_for[unlocked] == 0 {
                ready.push(unlocked);
            }
        }
    }
    order
}
