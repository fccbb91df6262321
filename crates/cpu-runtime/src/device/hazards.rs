//! What phases touch, and which of them must not run without a barrier between them.

use super::phase::Work;
use crate::linear::RawWeights;
use crate::row::{Instruction, Matrix};
use allotrope_graph::{Dim, Sizes};
use std::ops::Range;

/// Which members touch something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Who {
    /// Any, any part of it.
    Anybody,
    /// Member 0.
    First,
    /// Each its share of the rows of a symbolic size, of so many bytes each.
    RowOwners(Dim, usize),
}

/// Bytes that a phase reads or writes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Access {
    pub(super) bytes: Range<usize>,
    pub(super) writes: bool,
    pub(super) who: Who,
}

impl Access {
    pub(super) fn read(bytes: Range<usize>, who: Who) -> Self {
        Self { bytes, writes: false, who }
    }

    pub(super) fn write(bytes: Range<usize>, who: Who) -> Self {
        Self { bytes, writes: true, who }
    }

    /// Whether one member may touch what another member touches, and one of them writes.
    fn conflicts(&self, other: &Self) -> bool {
        let overlap = self.bytes.start < other.bytes.end && other.bytes.start < self.bytes.end;
        // The same rows in the same places are of the same members.
        let same_members = match (self.who, other.who) {
            (Who::First, Who::First) => true,
            (Who::RowOwners(..), Who::RowOwners(..)) => self.who == other.who && self.bytes == other.bytes,
            _ => false,
        };
        overlap && (self.writes || other.writes) && !same_members
    }
}

/// Whether members that each do all of one thing would touch what another of them touches.
pub(super) fn conflict(accesses: &[Access]) -> bool {
    accesses.iter().enumerate().any(|(index, one)| accesses[..index].iter().any(|other| one.conflicts(other)))
}

/// What was touched since the last barrier.
#[derive(Debug, Default)]
pub(super) struct Open(Vec<Access>);

impl Open {
    /// Adds what comes next; whether a barrier must come before it.
    pub(super) fn add(&mut self, next: Vec<Access>) -> bool {
        let barrier = next.iter().any(|next| self.0.iter().any(|before| before.conflicts(next)));
        if barrier {
            self.0.clear();
        }
        self.0.extend(next);
        barrier
    }
}

/// The bytes of `rows` rows of a matrix.
pub(super) fn matrix(matrix: &Matrix, rows: usize) -> Range<usize> {
    bytes(matrix.begin, rows, matrix.width * matrix.element.bytes())
}

/// The bytes of a table that rows are gathered from.
pub(super) fn table(table: &RawWeights) -> Range<usize> {
    bytes(table.begin, table.rows, table.row_bytes())
}

/// The bytes of `rows` rows from an address on.
pub(super) fn bytes(begin: *const u8, rows: usize, row_bytes: usize) -> Range<usize> {
    let begin = begin.addr();
    begin..begin.saturating_add(rows.saturating_mul(row_bytes))
}

/// What the work of a phase touches, in batches of up to `limits`.
pub(super) fn accesses(work: &Work, dim: Dim, limits: &Sizes) -> Vec<Access> {
    let rows = limits.of(dim);
    match work {
        Work::Rows(program) => {
            let owners = |matrix: &Matrix| match rows {
                0 | 1 => Who::First,
                _ => Who::RowOwners(dim, matrix.width * matrix.element.bytes()),
            };
            let of = |instruction: &Instruction| match instruction {
                Instruction::Load { from, .. } => Some(Access::read(matrix(from, rows), owners(from))),
                Instruction::Store { to, .. } => Some(Access::write(matrix(to, rows), owners(to))),
                Instruction::Gather { from, .. } => Some(Access::read(table(from), Who::Anybody)),
                Instruction::KvWrite { cache, .. } => Some(Access::write(cache.addresses(), Who::Anybody)),
                _ => None,
            };
            program.instructions().iter().filter_map(of).collect()
        }
        Work::Linear(jobs) => jobs
            .iter()
            .flat_map(|job| {
                let x = bytes(job.x, rows, job.weights.row_bytes());
                let y = bytes(job.y, rows, job.weights.rows * job.output.bytes());
                [Access::read(x, Who::Anybody), Access::write(y, Who::Anybody)]
            })
            .collect(),
        Work::Attention(attention) => {
            let row_bytes = attention.heads * attention.cache.head_dim * attention.element.bytes();
            vec![
                Access::read(bytes(attention.queries, rows, row_bytes), Who::Anybody),
                Access::read(attention.cache.addresses(), Who::Anybody),
                Access::write(bytes(attention.output, rows, row_bytes), Who::Anybody),
                Access::write(bytes(attention.records.begin, 1, attention.records.bytes), Who::Anybody),
            ]
        }
    }
}
