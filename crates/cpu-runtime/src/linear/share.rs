//! Products of one row whose members keep to their own columns: nothing is planned, counted or looked up while they run.

use super::unit::{Plan, Prepared};
use super::{Job, RunUnit, TILE_COLUMNS};
use crate::team::Worker;

/// A product of one row, planned.
#[derive(Clone, Debug)]
pub(crate) struct Share {
    job: Job,
    plan: Plan,
}

impl Share {
    /// The product of one row of x, for a team of so many threads.
    pub(crate) fn new(job: Job, threads: usize) -> Self {
        Self { plan: job.plan(1, threads), job }
    }

    /// Bytes of weights.
    pub(crate) fn weight_bytes(&self) -> usize {
        self.job.weights.rows.saturating_mul(self.job.weights.row_bytes())
    }
}

/// Does this member's columns of products that do not depend on each other. All members must call it; the results are
/// complete after the next barrier.
///
/// # Safety
/// As [`super::run_jobs`], for one row.
pub(crate) unsafe fn run_shares(shares: &[Share], worker: &Worker<'_>, scratch: &mut [u8]) {
    let mut prepared = Prepared::default();
    for Share { job, plan } in shares {
        let tiles = worker.partition(job.weights.rows.div_ceil(TILE_COLUMNS));
        let columns = tiles.start * TILE_COLUMNS..(tiles.end * TILE_COLUMNS).min(job.weights.rows);
        if !columns.is_empty() {
            let prepared = &mut prepared;
            job.isa.dispatch(RunUnit { job, plan, rows: 0..1, columns, scratch, prepared });
        }
    }
}
