//! Matrix products: `y[m, n] = Σ_k x[m, k] · w[n, k]`, for one row of x as for many.
//!
//! One order of summation per instruction-set path (see [`crate::simd`]) is used by every tile shape and both weight
//! layouts, so the bits of `y[m, n]` depend on row m of x, row n of w and the path alone.

mod tile;
mod unit;
mod weights;

pub use weights::{TILE_COLUMNS, WeightLayout, Weights, repack, tiled_bytes};

use crate::element::ElementType;
use crate::error::{KernelError, check_size, size_of};
use crate::isa::{Isa, Task};
use crate::memory::Workspace;
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
/// [`KernelError`] if a size does not fit the shapes, the output type is FP8, or scratch memory can't be had.
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
    let job = Job {
        isa: linear.isa,
        x: linear.x.as_ptr(),
        rows,
        weights: weights.raw(),
        scale: linear.scale,
        y: y.as_mut_ptr(),
        output: linear.output,
    };
    workspace.reserve(team.threads(), job.scratch_bytes(team.threads())?)?;
    let scratch = workspace.parts();
    team.run(|worker| {
        // SAFETY: the sizes were checked above, each member asks for its own scratch, and y is exclusively borrowed.
        unsafe { job.run(worker, scratch.part(worker.index())) };
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
    pub(crate) rows: usize,
    pub(crate) weights: weights::RawWeights,
    pub(crate) scale: f32,
    /// `[rows, N]` of `output`.
    pub(crate) y: *mut u8,
    pub(crate) output: ElementType,
}

// SAFETY: a job is addresses and numbers; its use across threads is governed by the contract of `run`.
unsafe impl Sync for Job {}
// SAFETY: as above.
unsafe impl Send for Job {}

impl Job {
    /// Bytes of scratch that each member needs.
    pub(crate) fn scratch_bytes(&self, threads: usize) -> Result<usize, KernelError> {
        let plan = self.isa.dispatch(MakePlan(self, threads));
        plan.scratch_bytes().ok_or(KernelError::Overflow { kernel: KERNEL, argument: "scratch" })
    }

    /// Does this member's part. All members must call it; y is complete after the next barrier.
    ///
    /// # Safety
    /// x, the weights and y must be valid for their shapes, y overlapping neither, and nobody may write x or touch y
    /// until the barrier. `scratch` must have `scratch_bytes(worker.count())` bytes.
    pub(crate) unsafe fn run(&self, worker: &Worker<'_>, scratch: &mut [u8]) {
        if self.rows == 0 || self.weights.rows == 0 {
            return;
        }
        let plan = self.isa.dispatch(MakePlan(self, worker.count()));
        debug_assert!(plan.scratch_bytes().is_some_and(|bytes| bytes <= scratch.len()));
        let mut prepared = unit::Prepared::default();
        worker.for_each_unit(plan.units(), |index| {
            let (rows, columns) = plan.unit(index);
            self.isa.dispatch(RunUnit { job: self, plan: &plan, rows, columns, scratch, prepared: &mut prepared });
        });
    }
}

struct MakePlan<'a>(&'a Job, usize);

impl Task for MakePlan<'_> {
    type Output = Plan;
    #[inline(always)]
    fn run<S: Simd>(self) -> Plan {
        let Self(job, threads) = self;
        match job.weights.element {
            ElementType::Bf16 => Plan::new::<S, S::Bf16>(job, threads),
            ElementType::F16 => Plan::new::<S, S::F16>(job, threads),
            ElementType::F32 => Plan::new::<S, S::F32>(job, threads),
            ElementType::F8E4M3 => Plan::new::<S, S::Fp8>(job, threads),
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
        // SAFETY: the contract of `Job::run`; the features are present inside `dispatch`.
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
