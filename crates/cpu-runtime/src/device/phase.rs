//! Phases: what a launch runs between two barriers of the team, with all addresses resolved.

use crate::attention::{Attention, Batch};
use crate::isa::Isa;
use crate::linear::{self, Job};
use crate::memory::Part;
use crate::row::RowProgram;
use crate::team::Worker;
use allotrope_graph::{Dim, Sizes};

/// The work of a phase.
#[derive(Clone, Debug)]
pub(super) enum Work {
    /// A row program.
    Rows(RowProgram),
    /// Projections that do not depend on each other.
    Linear(Vec<Job>),
    /// Attention over the paged cache.
    Attention(Attention),
}

/// A phase.
#[derive(Clone, Debug)]
pub(super) struct Phase {
    pub(super) work: Work,
    /// The symbolic size that it runs over.
    pub(super) rows: Dim,
}

impl Phase {
    /// Does this member's part.
    ///
    /// # Safety
    /// The device's memory, whose addresses the phase has, must be alive, at least as large as `sizes` say, and touched
    /// by nobody but the team until the next barrier. `scratch` must have what the phase needs.
    pub(super) unsafe fn run(&self, isa: Isa, worker: &Worker<'_>, sizes: &Sizes, scratch: Part<'_>) {
        let rows = sizes.of(self.rows);
        // SAFETY: forwarded.
        unsafe {
            match &self.work {
                Work::Rows(program) => program.run(isa, worker, rows, scratch.own),
                Work::Linear(jobs) => linear::run_jobs(jobs, rows, worker, scratch),
                Work::Attention(attention) => {
                    let batch = Batch { tokens: rows, sequences: sizes.sequences, blocks: sizes.blocks };
                    attention.run(isa, worker, batch, scratch.own);
                }
            }
        }
    }
}
