//! Recordings: the phases of many launches with all that can be decided ahead of time decided, above all where members
//! must wait for each other.

use super::hazards::{self, Open};
use super::persistent;
use super::phase::{Phase, Work};
use crate::attention::{Attention, Batch};
use crate::isa::Isa;
use crate::linear::{self, Job, Share};
use crate::memory::{self, AllocationError, Buffer};
use crate::row::RowProgram;
use crate::team::Worker;
use allotrope_graph::{Dim, Sizes};
use std::sync::Arc;

/// Products of one row whose weights are fewer bytes for each member are not worth sharing out while they run.
const FIXED_BYTES: usize = 512 << 10;

/// What members run between two places where they may have to wait for each other.
#[derive(Clone, Debug)]
pub(super) struct Part {
    /// The launch, and the phase of it.
    pub(super) place: (usize, usize),
    /// Whether what members did before must be complete.
    pub(super) barrier: bool,
    /// The symbolic size that it runs over.
    pub(super) rows: Dim,
    pub(super) work: PartWork,
}

/// One of something for each member, or one for all.
#[derive(Clone, Debug)]
pub(super) struct PerMember<T>(Box<[T]>);

impl<T> PerMember<T> {
    /// One for all.
    pub(super) fn same(all: T) -> Self {
        Self(Box::new([all]))
    }

    /// What `make` gives for each of `members`.
    pub(super) fn each(members: usize, make: impl FnMut(usize) -> T) -> Self {
        Self((0..members).map(make).collect())
    }

    fn of(&self, member: usize) -> Option<&T> {
        self.0.get(member).or(self.0.first())
    }
}

/// The work of a part.
#[derive(Clone, Debug)]
pub(super) enum PartWork {
    /// A row program, each member its rows.
    Rows(RowProgram),
    /// A row program of one row at most, which every member does for itself.
    EveryRow(PerMember<RowProgram>),
    /// Projections, shared out while they run.
    Linear(PerMember<Vec<Job>>),
    /// Projections of one row, each member its columns.
    Shares(PerMember<Vec<Share>>),
    /// Attention.
    Attention(PerMember<Attention>),
    /// Attention of one token over a single KV head, each member some of the heads that share it.
    Heads(PerMember<Attention>),
}

/// The parts of a recording.
#[derive(Debug)]
pub(super) struct Parts {
    pub(super) parts: Vec<Part>,
    /// Where members but the first keep what each computes for itself.
    _private: Option<Buffer>,
}

impl Parts {
    /// The phases of launches, for batches of up to `limits` and a team of so many threads. In `persistent` recordings of
    /// single tokens, members compute again what else they would have to wait for.
    ///
    /// # Errors
    /// [`AllocationError`] if the operating system gives no memory.
    pub(super) fn new(
        kernels: &[Arc<[Phase]>],
        limits: &Sizes,
        threads: usize,
        persistent: bool,
    ) -> Result<Self, AllocationError> {
        let phases = || {
            let launches = kernels.iter().enumerate();
            launches
                .flat_map(|(launch, phases)| phases.iter().enumerate().map(move |(index, it)| ((launch, index), it)))
        };
        let single = phases().all(|(_, phase)| limits.of(phase.rows) <= 1);
        let resident = persistent && single && threads > 1;
        let resident = if resident { persistent::parts(phases(), limits, threads)? } else { None };
        if let Some((parts, private)) = resident {
            return Ok(Self { parts, _private: Some(private) });
        }
        let mut open = Open::default();
        let part = |(place, phase): ((usize, usize), &Phase)| {
            let barrier = open.add(hazards::accesses(&phase.work, phase.rows, limits));
            let work = match &phase.work {
                Work::Rows(program) => PartWork::Rows(program.clone()),
                Work::Linear(jobs) => projections(single, threads, PerMember::same(jobs.clone())),
                Work::Attention(attention) => PartWork::Attention(PerMember::same(*attention)),
            };
            Part { place, barrier, rows: phase.rows, work }
        };
        Ok(Self { parts: phases().map(part).collect(), _private: None })
    }
}

/// Projections as a part: where they are of one row and small, members keep to their own columns.
pub(super) fn projections(single: bool, threads: usize, jobs: PerMember<Vec<Job>>) -> PartWork {
    let planned = |jobs: &Vec<Job>| jobs.iter().map(|job| Share::new(*job, threads)).collect::<Vec<_>>();
    let shares = PerMember(if single { jobs.0.iter().map(planned).collect() } else { Box::default() });
    let bytes = shares.of(0).map_or(usize::MAX, |shares| shares.iter().map(Share::weight_bytes).sum());
    if bytes / threads.max(1) < FIXED_BYTES { PartWork::Shares(shares) } else { PartWork::Linear(jobs) }
}

impl Part {
    /// Does this member's part.
    ///
    /// # Safety
    /// As [`Phase::run`]; members must run the parts of a recording in order, with the barriers that they ask for.
    pub(super) unsafe fn run(&self, isa: Isa, worker: &Worker<'_>, sizes: &Sizes, mut scratch: memory::Part<'_>) {
        let (rows, member) = (sizes.of(self.rows), worker.index());
        // SAFETY: forwarded. Where every member does all rows, each does so in memory of its own, but for the first one.
        unsafe {
            match &self.work {
                PartWork::Rows(program) => program.run(isa, worker, rows, scratch.own),
                PartWork::EveryRow(programs) => {
                    if let Some(program) = programs.of(member) {
                        program.run_rows(isa, 0..rows, scratch.own);
                    }
                }
                PartWork::Linear(jobs) => {
                    if let Some(jobs) = jobs.of(member) {
                        linear::run_jobs(jobs, rows, worker, scratch);
                    }
                }
                PartWork::Shares(shares) => {
                    if let Some(shares) = shares.of(member).filter(|_| rows > 0) {
                        linear::run_shares(shares, worker, &mut scratch);
                    }
                }
                PartWork::Attention(attention) => {
                    let batch = Batch { tokens: rows, sequences: sizes.sequences, blocks: sizes.blocks };
                    if let Some(attention) = attention.of(member) {
                        attention.run(isa, worker, batch, scratch.own);
                    }
                }
                PartWork::Heads(attention) => {
                    let batch = Batch { tokens: rows, sequences: sizes.sequences, blocks: sizes.blocks };
                    if let Some(attention) = attention.of(member) {
                        attention.run_heads(isa, worker, batch, scratch.own);
                    }
                }
            }
        }
    }
}
