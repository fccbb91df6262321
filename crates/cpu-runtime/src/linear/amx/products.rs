//! Units of work: few rows of x stream over the weights; many are packed once for all members and blocked for the caches.

use super::pack::{Rows, is_in_place, unpack_weights};
use super::plan::{Plan, ROW_BLOCK, UNPACKED_TILES};
use super::registers::{self, Registers, Sums, Tiles};
use super::store::{self, Place};
use super::{TILE, TILE_BYTES, TILE_ROW_BYTES};
use crate::error::KernelError;
use crate::isa::Task;
use crate::linear::{Job, KERNEL, RawWeights, Tuning, find_unit};
use crate::memory::{Part, ScratchBytes};
use crate::simd::Simd;
use crate::team::Worker;
use std::mem::MaybeUninit;
use std::ops::Range;

/// Bytes ahead of use at which weights are asked for where sixteen rows are read side by side, for each.
const AHEAD_IN_ROWS: usize = 1024;

/// The scratch that a product needs for any number of rows.
pub(in crate::linear) fn scratch_bytes(job: &Job, threads: usize) -> Result<ScratchBytes, KernelError> {
    let overflow = || KernelError::Overflow { kernel: KERNEL, argument: "scratch" };
    let bytes = |rows| Plan::new(&job.weights, &job.tuning, rows, threads).scratch_bytes().ok_or_else(overflow);
    Ok(bytes(super::plan::FEW_ROWS)?.max(bytes(ROW_BLOCK)?))
}

/// Does this member's part of products that do not depend on each other.
///
/// # Safety
/// The contract of [`crate::linear::run_jobs`]; the jobs must be products of tiles.
pub(in crate::linear) unsafe fn run(jobs: &[Job], rows: usize, worker: &Worker<'_>, part: &mut Part<'_>) {
    let threads = worker.count();
    for start in (0..rows).step_by(ROW_BLOCK) {
        let block = start..rows.min(start + ROW_BLOCK);
        // SAFETY: the path was chosen, which needs the permission.
        let _registers = unsafe { Registers::configure(block.len().min(TILE)) };
        let plan = |job: &Job| Plan::new(&job.weights, &job.tuning, block.len(), threads);
        // Products of the same rows of x share its tiles.
        for jobs in jobs.chunk_by(|a, b| a.x == b.x && a.weights.columns == b.weights.columns) {
            let Some(first) = jobs.first() else { continue };
            let (x, plan_of_first) = (x_rows(first, &block), plan(first));
            let few = plan_of_first.is_few();
            let pack = |tiles, to| first.isa.dispatch(Pack { x, plan: plan_of_first, tiles, to });
            if few {
                // Another product may have used this memory since, so nothing is assumed about it.
                pack(0..plan_of_first.x_tiles(), part.own.as_mut_ptr());
            } else {
                let bytes = plan_of_first.depth * TILE_BYTES;
                worker.for_each_unit(plan_of_first.x_tiles(), |tile| {
                    pack(tile..tile + 1, part.shared.begin.wrapping_add(tile * bytes));
                });
            }
            worker.for_each_unit(jobs.iter().map(|job| plan(job).units()).sum(), |unit| {
                let Some((job, plan, units)) = find_unit(jobs, plan, Plan::units, unit) else { return };
                debug_assert!(
                    plan.scratch_bytes()
                        .is_some_and(|bytes| { bytes.own <= part.own.len() && bytes.shared <= part.shared.len })
                );
                let tiles = plan.unit(unit - units.start);
                let own = part.own.as_mut_ptr();
                if few {
                    job.isa.dispatch(Few { job, plan: &plan, first_row: block.start, tiles, own });
                } else {
                    job.isa.dispatch(Many {
                        job,
                        plan: &plan,
                        first_row: block.start,
                        tiles,
                        own,
                        x: part.shared.begin,
                    });
                }
            });
        }
    }
}

/// Which row of x is packed in a member's scratch, and the tiles' configuration, which holds until this is dropped.
#[derive(Default)]
pub(in crate::linear) struct Packed(Option<(*const u8, usize, Registers)>);

/// Some tiles of w times one row of x.
///
/// # Safety
/// The contract of [`crate::linear::run_jobs`]; `plan` must be the job's for one row, the job a product of tiles, and the
/// scratch untouched since `packed` was written.
pub(in crate::linear) unsafe fn run_tiles(
    job: &Job,
    plan: &Plan,
    tiles: Range<usize>,
    part: &mut Part<'_>,
    packed: &mut Packed,
) {
    debug_assert!(plan.scratch_bytes().is_some_and(|bytes| bytes.own <= part.own.len()));
    let own = part.own.as_mut_ptr();
    let is_packed = packed.0.as_ref().is_some_and(|(x, depth, _)| (*x, *depth) == (job.x, plan.depth));
    if !is_packed {
        // SAFETY: the path was chosen, which needs the permission.
        let configure = || unsafe { Registers::configure(1) };
        let registers = packed.0.take().map_or_else(configure, |(_, _, registers)| registers);
        job.isa.dispatch(Pack { x: x_rows(job, &(0..1)), plan: *plan, tiles: 0..plan.x_tiles(), to: own });
        packed.0 = Some((job.x, plan.depth, registers));
    }
    job.isa.dispatch(Few { job, plan, first_row: 0, tiles, own });
}

fn x_rows(job: &Job, block: &Range<usize>) -> Rows {
    let bytes = job.weights.row_bytes();
    Rows { begin: job.x.wrapping_add(block.start * bytes), count: block.len(), bytes, element: job.weights.element }
}

/// Packs tiles of x.
struct Pack {
    x: Rows,
    plan: Plan,
    tiles: Range<usize>,
    to: *mut u8,
}

impl Task for Pack {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self) {
        let Self { x, plan, tiles, to } = self;
        let bytes = TILE_ROW_BYTES * plan.x_columns();
        for (index, tile) in tiles.enumerate() {
            for depth in 0..plan.depth {
                // SAFETY: the contract of `run`; the scratch has room for all tiles of x.
                unsafe { x.pack(tile * TILE, plan.x_columns(), depth, to.add((index * plan.depth + depth) * bytes)) };
            }
        }
    }
}

/// Tiles of sums in memory, before they are rounded.
#[repr(align(64))]
struct SumTiles(MaybeUninit<[f32; 4 * TILE * TILE]>);

/// A unit of few rows: tiles of w stream by, one after the other.
struct Few<'a> {
    job: &'a Job,
    plan: &'a Plan,
    /// The row of y that the first tile of x begins at.
    first_row: usize,
    tiles: Range<usize>,
    /// Packed x, then room for unpacked weights.
    own: *mut u8,
}

impl Task for Few<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self) {
        let mut tile = self.tiles.start;
        while tile < self.tiles.end {
            let left = self.tiles.end - tile;
            // SAFETY: the contract of `run`.
            tile += unsafe {
                match (self.plan.x_tiles(), left) {
                    // Four streams, line by line in turn, are read faster than one. Where rows lie apart there are sixteen.
                    (1, 4..) if self.job.weights.is_tiled() => self.tiles::<4, 1>(tile),
                    (1, 2..) if is_in_place(&self.job.weights, tile) => self.tiles::<2, 1>(tile),
                    (1, _) => self.tiles::<1, 1>(tile),
                    (_, 2..) => self.tiles::<2, 2>(tile),
                    (_, _) => self.tiles::<1, 2>(tile),
                }
            };
        }
    }
}

impl Few<'_> {
    /// `W` tiles of w times `X` of x, over all of K. Gives `W`.
    ///
    /// # Safety
    /// The contract of [`run`].
    #[inline(always)]
    unsafe fn tiles<const W: usize, const X: usize>(&self, tile: usize) -> usize {
        let (w, plan) = (&self.job.weights, self.plan);
        let columns = plan.x_columns();
        let x_row = columns * 4;
        let x = Tiles {
            begin: self.own,
            row: x_row,
            depth: TILE_ROW_BYTES * columns,
            beside: plan.depth * TILE_ROW_BYTES * columns,
        };
        let mut tiles = SumTiles(MaybeUninit::uninit());
        // SAFETY: the contract of `run`; the scratch has the plan's bytes.
        unsafe {
            registers::zero();
            let stored = weight_tiles(w, tile);
            // Asked for in the order in which this loop takes them: after the end of these tiles' rows come the next tiles.
            let ahead = ahead(w, &self.job.tuning) / W;
            let next = ahead.wrapping_add(W * stored.beside).wrapping_sub(w.blocks() * w.strides().1);
            if (tile..tile + W).all(|tile| is_in_place(w, tile)) {
                let last = plan.depth - plan.depth.min(ahead / stored.depth);
                registers::multiply::<W, X>(&stored, &x, last, ahead);
                let (stored, x) = (stored.after(last), x.after(last));
                registers::multiply::<W, X>(&stored, &x, plan.depth - last, next);
            } else {
                let unpacked = self.own.add(plan.x_bytes().unwrap_or(0));
                let (length, tiles_per_block) = (UNPACKED_TILES / W, plan.depth / w.blocks());
                let half = |first: usize| unpacked.wrapping_add(first / length % 2 * UNPACKED_TILES * TILE_BYTES);
                let run = |first: usize| first..plan.depth.min(first + length);
                // A run is multiplied when the next is unpacked: lines that were just written are slow to load as a tile.
                for first in (0..plan.depth + length).step_by(length) {
                    if first < plan.depth {
                        let ends = run(first).end / tiles_per_block + ahead / w.strides().1 > w.blocks();
                        let place = (half(first), length * TILE_BYTES);
                        unpack_weights::<W>(w, tile, run(first), if ends { next } else { ahead }, place);
                    }
                    if let Some(first) = first.checked_sub(length) {
                        let weights = unpacked_tiles(half(first), length);
                        registers::multiply::<W, X>(&weights, &x.after(first), run(first).len(), 0);
                    }
                }
            }
            registers::store(&Sums { begin: tiles.0.as_mut_ptr().cast(), row: x_row }, W * X);
            store_tiles::<W, X>(self.job, plan, tiles.0.as_ptr().cast(), (0, tile), self.first_row);
        }
        W
    }
}

/// The tiles of weights that can be multiplied where they are.
fn weight_tiles(w: &RawWeights, tile: usize) -> Tiles {
    let (row, depth) = w.strides();
    let begin = w.begin.wrapping_add(w.row_offset(tile * TILE));
    Tiles { begin, row, depth, beside: w.row_offset(TILE) }
}

/// Unpacked tiles of weights, `run` of them along K.
fn unpacked_tiles(begin: *const u8, run: usize) -> Tiles {
    Tiles { begin, row: TILE_ROW_BYTES, depth: TILE_BYTES, beside: run * TILE_BYTES }
}

fn ahead(w: &RawWeights, tuning: &Tuning) -> usize {
    if w.is_tiled() { tuning.ahead } else { AHEAD_IN_ROWS }
}

/// Rounds `W` times `X` tiles of sums into y: `x` and `w` are the first of them, `first_row` the row of y that tile 0 of x
/// begins at.
///
/// # Safety
/// The contract of [`run`].
#[inline(always)]
unsafe fn store_tiles<const W: usize, const X: usize>(
    job: &Job,
    plan: &Plan,
    sums: *const f32,
    (x, w): (usize, usize),
    first_row: usize,
) {
    let columns = (job.weights.rows - w * TILE).min(W * TILE);
    for index in 0..X {
        let tile = x + index;
        let rows = plan.rows.saturating_sub(tile * TILE).min(TILE);
        let place = Place { row: first_row + tile * TILE, rows, column: w * TILE, columns };
        // SAFETY: forwarded; the tiles are part of y.
        unsafe { store::store::<W>(job, sums.add(index * W * TILE * TILE), plan.x_columns(), place) };
    }
}

/// A unit of many rows: its weights, a run along K at a time, times all tiles of x.
struct Many<'a> {
    job: &'a Job,
    plan: &'a Plan,
    /// The row of y that the first tile of x begins at.
    first_row: usize,
    tiles: Range<usize>,
    /// Room for unpacked weights, then for sums.
    own: *mut u8,
    /// Packed x.
    x: *const u8,
}

impl Task for Many<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self) {
        let (plan, w) = (self.plan, &self.job.weights);
        for first in (0..plan.depth).step_by(plan.run) {
            let run = first..plan.depth.min(first + plan.run);
            // SAFETY: the contract of `run`; the scratch has room for a run of the unit's tiles.
            unsafe {
                if plan.unpacks {
                    for (index, tile) in self.tiles.clone().enumerate() {
                        let to = self.own.add(index * plan.run * TILE_BYTES);
                        unpack_weights::<1>(w, tile, run.clone(), AHEAD_IN_ROWS, (to, 0));
                    }
                }
                self.run_of_tiles(&run);
            }
        }
    }
}

impl Many<'_> {
    /// All tiles of x times all of the unit, over one run along K.
    ///
    /// # Safety
    /// The contract of [`run`]; weights that are not in place must be unpacked.
    #[inline(always)]
    unsafe fn run_of_tiles(&self, run: &Range<usize>) {
        let (plan, w) = (self.plan, &self.job.weights);
        let beside = plan.depth * TILE_BYTES;
        for x_tile in (0..plan.x_tiles()).step_by(2) {
            let begin = self.x.wrapping_add(x_tile * beside + run.start * TILE_BYTES);
            let x = Tiles { begin, row: TILE_ROW_BYTES, depth: TILE_BYTES, beside };
            for (index, tile) in self.tiles.clone().enumerate().step_by(2) {
                let weights = if plan.unpacks {
                    unpacked_tiles(self.own.wrapping_add(index * plan.run * TILE_BYTES), plan.run)
                } else {
                    let tiles = weight_tiles(w, tile);
                    Tiles { begin: tiles.begin.wrapping_add(run.start * tiles.depth), ..tiles }
                };
                let wide = tile + 1 < self.tiles.end;
                let tall = x_tile + 1 < plan.x_tiles();
                // SAFETY: forwarded.
                unsafe {
                    match (wide, tall) {
                        (true, true) => self.block::<2, 2>((x_tile, tile), &weights, &x, run),
                        (true, false) => self.block::<2, 1>((x_tile, tile), &weights, &x, run),
                        (false, true) => self.block::<1, 2>((x_tile, tile), &weights, &x, run),
                        (false, false) => self.block::<1, 1>((x_tile, tile), &weights, &x, run),
                    }
                }
            }
        }
    }

    /// `W` tiles of w times `X` of x over one run along K: on from the sums of the run before, if there was one.
    ///
    /// # Safety
    /// The contract of [`run`].
    #[inline(always)]
    unsafe fn block<const W: usize, const X: usize>(
        &self,
        (x_tile, tile): (usize, usize),
        w: &Tiles,
        x: &Tiles,
        run: &Range<usize>,
    ) {
        let plan = self.plan;
        let ends = run.end == plan.depth;
        let mut tiles = SumTiles(MaybeUninit::uninit());
        let weight_bytes = plan.unit_bytes().map_or(0, |[weights, _]| weights);
        let pair = (tile - self.tiles.start) / 2 * plan.x_tiles().div_ceil(2) + x_tile / 2;
        let kept = Sums { begin: self.own.wrapping_add(weight_bytes + pair * 4 * TILE_BYTES), row: TILE_ROW_BYTES };
        // SAFETY: forwarded; the scratch has room for the sums of all blocks of the unit, where they are kept.
        unsafe {
            registers::zero();
            if run.start > 0 {
                registers::load(&kept, W * X);
            }
            registers::multiply::<W, X>(w, x, run.len(), 0);
            if !ends {
                registers::store(&kept, W * X);
                return;
            }
            registers::store(&Sums { begin: tiles.0.as_mut_ptr().cast(), row: TILE_ROW_BYTES }, W * X);
            store_tiles::<W, X>(self.job, plan, tiles.0.as_ptr().cast(), (x_tile, tile), self.first_row);
        }
    }
}
