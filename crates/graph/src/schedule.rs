//! The order of launches: of those orders that the operands allow, one in which fewer bytes are alive at once.
//!
//! Launches move within their piece only, so a step keeps its launches and its pieces. In each piece the launch is taken
//! next that adds the fewest bytes (what it makes, less what it reads for the last time), the earlier one where two add
//! as many; a piece keeps its order unless that lowers its peak.

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
    let launches: Vec<usize> = (0..graph.groups().len()).collect();
    let mut live = Liveness::new(graph, limits);
    let peak_before = live.peak(&launches);
    let mut order: Vec<usize> = Vec::with_capacity(launches.len());
    for piece in partition(graph, splitting_ops) {
        let original = &launches[piece.groups];
        let greedy = live.greedy(original);
        // What is alive before and after a piece is the same in each order of it, so its own peak decides.
        let better = live.peak(&greedy) < live.peak(original);
        let chosen = if better { &greedy } else { original };
        live.run(chosen);
        order.extend(chosen);
    }
    let moved = order.iter().enumerate().filter(|(place, group)| place != *group).count();
    if moved == 0 {
        return ScheduleReport { moved, peak_before, peak_after: peak_before };
    }
    let peak_after = Liveness::new(graph, limits).run(&order);
    graph.reorder_groups(&order);
    ScheduleReport { moved, peak_before, peak_after }
}

/// What a launch hands over and takes.
#[derive(Default)]
struct Traffic {
    /// Bytes of the values that it makes for other launches.
    made: usize,
    /// The values that it reads from other launches, each once.
    read: Vec<ValueId>,
}

/// What is alive while launches run one after the other.
struct Liveness<'a> {
    graph: &'a Graph,
    /// By launch.
    traffic: Vec<Traffic>,
    /// By value: its bytes, and how many launches have yet to read it.
    waiting: Vec<(usize, usize)>,
}

impl<'a> Liveness<'a> {
    fn new(graph: &'a Graph, limits: &Sizes) -> Self {
        let mut waiting = vec![(0, 0); graph.values().len()];
        let mut traffic: Vec<Traffic> = (0..graph.groups().len()).map(|_| Traffic::default()).collect();
        for op in graph.ops() {
            let crosses = MemoryPlan::crosses_launches(graph, op.output);
            let bytes = graph.tensor_type(op.output).filter(|_| crosses).and_then(|tensor| tensor.bytes(limits));
            waiting[op.output.index()].0 = bytes.unwrap_or(0);
        }
        for (traffic, group) in traffic.iter_mut().zip(graph.groups()) {
            let made = group.ops.iter().map(|op| waiting[graph.op(*op).output.index()].0);
            traffic.made = made.fold(0, usize::saturating_add);
            traffic.read = graph.group_inputs(group);
            traffic.read.retain(|value| waiting[value.index()].0 > 0);
            traffic.read.iter().for_each(|value| waiting[value.index()].1 += 1);
        }
        // A result of the step is read by one more, at the end.
        graph.outputs().iter().for_each(|output| waiting[output.index()].1 += 1);
        Liveness { graph, traffic, waiting }
    }

    /// Bytes that a launch would make and free.
    fn change(&self, group: usize) -> (usize, usize) {
        let Traffic { made, read } = &self.traffic[group];
        let last = read.iter().map(|value| self.waiting[value.index()]).filter(|(_, readers)| *readers == 1);
        (*made, last.map(|(bytes, _)| bytes).fold(0, usize::saturating_add))
    }

    /// Runs launches, and gives the most bytes that they made and did not yet free, over what was alive before them.
    fn run(&mut self, order: &[usize]) -> usize {
        let (mut peak, mut now) = (0isize, 0isize);
        for group in order {
            let (made, freed) = self.change(*group);
            peak = peak.max(now.saturating_add_unsigned(made));
            now = now.saturating_add_unsigned(made).saturating_sub_unsigned(freed);
            self.note(*group, true);
        }
        usize::try_from(peak).unwrap_or(0)
    }

    /// [`Liveness::run`], undone.
    fn peak(&mut self, order: &[usize]) -> usize {
        let peak = self.run(order);
        order.iter().for_each(|group| self.note(*group, false));
        peak
    }

    /// Counts the reads of a launch, or takes them back.
    fn note(&mut self, group: usize, done: bool) {
        for value in &self.traffic[group].read {
            let readers = &mut self.waiting[value.index()].1;
            *readers = if done { *readers - 1 } else { *readers + 1 };
        }
    }

    /// The launches of a piece, each time the one that adds the fewest bytes.
    fn greedy(&mut self, piece: &[usize]) -> Vec<usize> {
        let (Some(&first), Some(&last)) = (piece.first(), piece.last()) else { return Vec::new() };
        let mut waits_for = vec![0usize; piece.len()];
        let mut unlocks: Vec<Vec<usize>> = vec![Vec::new(); piece.len()];
        for (index, &group) in piece.iter().enumerate() {
            let read = self.graph.group_inputs(&self.graph.groups()[group]);
            let producers = read.into_iter().filter_map(|value| self.graph.producer(value));
            let mut places: Vec<usize> = producers.map(|op| self.graph.group_of(op)).collect();
            places.sort_unstable();
            places.dedup();
            for place in places.into_iter().filter(|place| (first..=last).contains(place)) {
                waits_for[index] += 1;
                unlocks[place - first].push(index);
            }
        }
        let mut ready: Vec<usize> = (0..piece.len()).filter(|index| waits_for[*index] == 0).collect();
        let mut order = Vec::with_capacity(piece.len());
        let added = |live: &Self, index: usize| {
            let (made, freed) = live.change(first + index);
            isize::try_from(made).unwrap_or(isize::MAX).saturating_sub_unsigned(freed)
        };
        while let Some(place) = (0..ready.len()).min_by_key(|place| (added(self, ready[*place]), ready[*place])) {
            let next = ready.swap_remove(place);
            self.note(first + next, true);
            order.push(first + next);
            for &unlocked in &unlocks[next] {
                waits_for[unlocked] -= 1;
                if waits_for[unlocked] == 0 {
                    ready.push(unlocked);
                }
            }
        }
        order.iter().for_each(|group| self.note(*group, false));
        order
    }
}
