//! What the suite did.

use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};

/// What was done, and the bits that came out.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// Graphs that were prepared.
    pub graphs: usize,
    /// Operations in them.
    pub operations: usize,
    /// Groups in them.
    pub groups: usize,
    /// Groups of several operations.
    pub fused: usize,
    /// Results in the place of operands.
    pub in_place: usize,
    /// Steps that ran.
    pub steps: usize,
    /// Recordings that were made.
    pub recordings: usize,
    /// Numbers that were compared.
    pub elements: usize,
    /// The name of each case, and a hash of the bits of its results. With the same random numbers, effort and target they are
    /// equal on all devices that promise the same bits as each other.
    pub digests: Vec<(String, u64)>,
}

impl Report {
    /// Adds what another part did.
    pub fn add(&mut self, other: Report) {
        self.graphs += other.graphs;
        self.operations += other.operations;
        self.groups += other.groups;
        self.fused += other.fused;
        self.in_place += other.in_place;
        self.steps += other.steps;
        self.recordings += other.recordings;
        self.elements += other.elements;
        self.digests.extend(other.digests);
    }

    pub(crate) fn digest(&mut self, case: &str, values: &[f32]) {
        let mut hasher = DefaultHasher::new();
        values.iter().for_each(|value| value.to_bits().hash(&mut hasher));
        self.digests.push((case.to_owned(), hasher.finish()));
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Report { graphs, operations, groups, fused, in_place, steps, recordings, elements, .. } = self;
        write!(
            f,
            "{graphs} graphs of {operations} operations in {groups} groups ({fused} fused), {in_place} results in place, \
             {steps} steps, {recordings} recordings, {elements} elements compared"
        )
    }
}
