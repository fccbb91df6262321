//! Matrix products: `y[m, n] = Σ_k x[m, k] · w[n, k]`, for one row of x as for many.
//!
//! One order of summation per instruction-set path (see [`crate::simd`]) is used by every tile shape and both weight
//! layouts, so the bits of `y[m, n]` depend on row m of x, row n of w and the path alone.

pub(crate) mod amx;
mod share;
pub(crate) mod tile;
pub(crate) mod tuning;
pub(crate) mod unit;
mod weights;

pub(crate) use share::{Share, run_shares};
pub(crate) use tuning::Tuning;
pub(crate) use weights::RawWeights;
pub(crate) use weights::TILE_COLUMNS;
pub use weights::{TileHeight, WeightLayout, Weights, repack, tiled_bytes};

use crate::element::ElementType;
use crate::error::{KernelError, check_size, size_of};
use crate::isa::{Isa, Task};
use crate::memory::{Part, ScratchBytes, Workspace};
use crate::simd::Simd;
use crate::team::{Team, Worker};
use std::ops::Range;
use unit::Plan;

/// A product of activations and weights.
#[derive(Clone, Copy, Debug)]
pub struct Linear<'a> {
    /// The instruction-set path.
    pub isa: Isa,
    /// Activations, `[rows, K]`, of the weights' element type.
    pub x: &'a [u8],
    /// Rows of x.
    pub rows: usize,
    /// The weights, `[N, K]`.
    pub weights: Weights<'a>,
    /// Every sum is multiplied by this before it is rounded: the product of the two scales for FP8, otherwise 1.
    pub scale: f32,
    /// The type that sums are rounded to.
    pub output: ElementType,
}

/// Computes `linear` into `y`, `[rows, N]` of the output type, with all threads of the team.
///
/// # Errors
/// [`KernelError`] if a size does not fit the shapes, the output type is FP8, the weights are tiled for another path, or
/// scratch memory can't be had.
pub fn linear(team: &Team, linear: &Linear<'_>, y: &mut [u8], workspace: &mut Workspace) -> Result<(), KernelError> {
    let weights = &linear.weights;
    let (rows, columns, depth) = (linear.rows, weights.rows(), weights.columns());
    check_size(KERNEL, "x", linear.x.len(), &[rows, depth, weights.element().bytes()])?;
    check_size(KERNEL, "y", y.len(), &[rows, columns, linear.output.bytes()])?;
    if linear.output == ElementType::F8E4M3 {
        return Err(KernelError::Unsupported {
            kernel: KERNEL,
            reason: "sums are rounded to bf16, f16 or f32, not to FP8: quantize the result in a step of its own".into(),
        });
    }
    let readable = [WeightLayout::Rows, WeightLayout::Tiled(TileHeight::of(linear.isa, weights.element()))];
    if !readable.contains(&weights.layout()) {
        return Err(KernelError::Unsupported {
            kernel: KERNEL,
            reason: format!("weights are {:?}; the {} path reads {readable:?}", weights.layout(), linear.isa),
        });
    }
    let job = Job {
        isa: linear.isa,
        x: linear.x.as_ptr(),
        weights: weights.raw(),
        scale: linear.scale,
        y: y.as_mut_ptr(),
        output: linear.output,
        tuning: Tuning::default(),
    };
    workspace.reserve(team.threads(), job.scratch_bytes(team.threads())?)?;
    let scratch = workspace.scratch();
    team.run(|worker| {
        // SAFETY: the sizes were checked above, each member asks for its own scratch, and y is exclusively borrowed.
        unsafe { run_jobs(&[job], rows, worker, scratch.part(worker.index())) };
    });
    Ok(())
}

const KERNEL: &str = "linear";

/// A product whose operands are known by address, to be run inside a dispatch.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Job {
    pub(crate) isa: Isa,
    /// `[rows, K]` of the weights' element type.
    pub(crate) x: *const u8,
    pub(crate) weights: RawWeights,
    pub(crate) scale: f32,
    /// `[rows, N]` of `output`.
    pub(crate) y: *mut u8,
    pub(crate) output: ElementType,
    /// How it is cut up, which results do not depend on.
    pub(crate) tuning: Tuning,
}

// SAFETY: a job is addresses and numbers; its use across threads is governed by the contract of `run_jobs`.
unsafe impl Sync for Job {}
// SAFETY: as above.
unsafe impl Send for Job {}

impl Job {
    fn plan(&self, rows: usize, threads: usize) -> Plan {
        self.isa.dispatch(MakePlan { job: self, rows, threads })
    }

    /// Whether it runs on the tiles of AMX.
    fn is_tiles(&self) -> bool {
        amx::multiplies(self.isa, self.weights.element)
    }

    /// The scratch that it needs, for any number of rows.
    pub(crate) fn scratch_bytes(&self, threads: usize) -> Result<ScratchBytes, KernelError> {
        #[cfg(target_arch = "x86_64")]
        if self.is_tiles() {
            return amx::scratch_bytes(self, threads);
        }
        // About the rows, scratch depends only on whether they are one register tile, and whether they are so few that
        // weights are unpacked in registers. More rows never need less.
        let bytes = |rows| {
            let overflow = KernelError::Overflow { kernel: KERNEL, argument: "scratch" };
            self.plan(rows, threads).scratch_bytes().ok_or(overflow)
        };
        Ok(ScratchBytes { own: bytes(MANY_ROWS)?, shared: 0 })
    }
}

/// More rows than any register tile has: the case that needs most scratch.
const MANY_ROWS: usize = 64;

/// Does this member's part of products that do not depend on each other, each of `rows` rows of x. All members must
/// call it; the results are complete after the next barrier.
///
/// # Safety
/// x, the weights and y of each job must be valid for their shapes, y overlapping nothing else, and nobody may write x
/// or touch y until the barrier. `scratch` must have the `scratch_bytes(worker.count())` of each job, aligned to a
/// cache line.
pub(crate) unsafe fn run_jobs(jobs: &[Job], rows: usize, worker: &Worker<'_>, mut scratch: Part<'_>) {
    if rows == 0 {
        return;
    }
    for jobs in jobs.chunk_by(|a, b| a.is_tiles() == b.is_tiles()) {
        // SAFETY: forwarded.
        unsafe {
            match jobs.first() {
                #[cfg(target_arch = "x86_64")]
                Some(job) if job.is_tiles() => amx::run(jobs, rows, worker, &mut scratch),
                _ => run_vectors(jobs, rows, worker, scratch.own),
            }
        }
    }
}

/// The same with the vector registers of the path.
///
/// # Safety
/// As [`run_jobs`].
unsafe fn run_vectors(jobs: &[Job], rows: usize, worker: &Worker<'_>, scratch: &mut [u8]) {
    let units = |job: &Job| job.plan(rows, worker.count()).units();
    let mut prepared = unit::Prepared::default();
    let mut present: Option<(&Job, Plan, Range<usize>)> = None;
    worker.for_each_unit(jobs.iter().map(units).sum(), |unit| {
        if !present.as_ref().is_some_and(|(_, _, range)| range.contains(&unit)) {
            present = find_unit(jobs, |job| job.plan(rows, worker.count()), Plan::units, unit);
        }
        let Some((job, plan, range)) = &present else { return };
        debug_assert!(plan.scratch_bytes().is_some_and(|bytes| bytes <= scratch.len()));
        let (rows, columns) = plan.unit(unit - range.start);
        job.isa.dispatch(RunUnit { job, plan, rows, columns, scratch, prepared: &mut prepared });
    });
}

/// The product that unit `unit` of all products' units is of, its plan, and which units it has.
fn find_unit<P>(
    jobs: &[Job],
    plan: impl Fn(&Job) -> P,
    units: impl Fn(&P) -> usize,
    unit: usize,
) -> Option<(&Job, P, Range<usize>)> {
    let mut first = 0;
    jobs.iter().find_map(|job| {
        let plan = plan(job);
        let range = first..first + units(&plan);
        first = range.end;
        range.contains(&unit).then_some((job, plan, range))
    })
}

struct MakePlan<'a> {
    job: &'a Job,
    rows: usize,
    threads: usize,
}

impl Task for MakePlan<'_> {
    type Output = Plan;
    fn run<S: Simd>(self) -> Plan {
        let Self { job, rows, threads } = self;
        match job.weights.element {
            ElementType::Bf16 => Plan::new::<S, S::Bf16>(&job.weights, &job.tuning, rows, threads),
            ElementType::F16 => Plan::new::<S, S::F16>(&job.weights, &job.tuning, rows, threads),
            ElementType::F32 => Plan::new::<S, S::F32>(&job.weights, &job.tuning, rows, threads),
            ElementType::F8E4M3 => Plan::new::<S, S::Fp8>(&job.weights, &job.tuning, rows, threads),
        }
    }
}

struct RunUnit<'a> {
    job: &'a Job,
    plan: &'a Plan,
    rows: Range<usize>,
    columns: Range<usize>,
    scratch: &'a mut [u8],
    prepared: &'a mut unit::Prepared,
}

impl Task for RunUnit<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self) {
        let Self { job, plan, rows, columns, scratch, prepared } = self;
        // SAFETY: the contract of `run_jobs`; the features are present inside `dispatch`.
        unsafe {
            match job.weights.element {
                ElementType::Bf16 => {
                    unit::run::<S, S::Bf16>(job, plan, rows, columns, scratch, prepared);
                }
                ElementType::F16 => {
                    unit::run::<S, S::F16>(job, plan, rows, columns, scratch, prepared);
                }
                ElementType::F32 => {
                    unit::run::<S, S::F32>(job, plan, rows, columns, scratch, prepared);
                }
                ElementType::F8E4M3 => {
                    unit::run::<S, S::Fp8>(job, plan, rows, columns, scratch, prepared);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
