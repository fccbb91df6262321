//! Products of one row whose members keep to their own columns: nothing is planned, counted or looked up while they run.

use super::unit::{self, Prepared};
use super::{Job, RunUnit, TILE_COLUMNS};
use crate::memory::Part;
use crate::team::Worker;

/// A product of one row, planned.
#[derive(Clone, Debug)]
pub(crate) struct Share {
    job: Job,
    plan: Plan,
}

/// How members compute their columns.
#[derive(Clone, Debug)]
enum Plan {
    Vectors(unit::Plan),
    #[cfg(target_arch = "x86_64")]
    Tiles(super::amx::Plan),
}

impl Share {
    /// The product of one row of x, for a team of so many threads.
    pub(crate) fn new(job: Job, threads: usize) -> Self {
        #[cfg(target_arch = "x86_64")]
        if job.is_tiles() {
            return Self { plan: Plan::Tiles(super::amx::Plan::new(&job.weights, &job.tuning, 1, threads)), job };
        }
        Self { plan: Plan::Vectors(job.plan(1, threads)), job }
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
pub(crate) unsafe fn run_shares(shares: &[Share], worker: &Worker<'_>, scratch: &mut Part<'_>) {
    let mut prepared = Prepared::default();
    #[cfg(target_arch = "x86_64")]
    let mut packed = super::amx::Packed::default();
    for Share { job, plan } in shares {
        match plan {
            // Either kind of kernel has its own use for the scratch.
            Plan::Vectors(plan) => {
                #[cfg(target_arch = "x86_64")]
                drop(std::mem::take(&mut packed));
                let tiles = worker.partition(job.weights.rows.div_ceil(TILE_COLUMNS));
                let columns = tiles.start * TILE_COLUMNS..(tiles.end * TILE_COLUMNS).min(job.weights.rows);
                if !columns.is_empty() {
                    let (prepared, scratch) = (&mut prepared, &mut *scratch.own);
                    job.isa.dispatch(RunUnit { job, plan, rows: 0..1, columns, scratch, prepared });
                }
            }
            #[cfg(target_arch = "x86_64")]
            Plan::Tiles(plan) => {
                prepared = Prepared::default();
                let tiles = worker.partition(plan.tiles());
                if !tiles.is_empty() {
                    // SAFETY: forwarded; the tiles are of the plan.
                    unsafe { super::amx::run_tiles(job, plan, tiles, scratch, &mut packed) };
                }
            }
        }
    }
}
