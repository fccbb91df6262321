//! A product cut into units of work: some rows of x times some rows of w that stay in the second-level cache.

use super::tile::{self, Columns, Sums, Tile};
use super::{Job, RawWeights, TILE_COLUMNS, Tuning};
use crate::element::{ElementType, canonical, to_bf16, to_f16};
use crate::simd::{BLOCK_BYTES, Dot, Simd};
use std::ops::Range;

/// Bytes of an x tile that are used over all weights of a unit before the next run of blocks: half of a first-level
/// cache.
const TILE_BYTES: usize = 24 << 10;
/// The most tiles of x for which weights are unpacked in registers, again for each tile.
const DIRECT_TILES: usize = 2;
/// Bytes ahead of use at which weights that are unpacked to scratch are asked for.
const PREFETCH_BYTES: usize = 4096;
/// The most rows of a tile on any path.
const MOST_ROWS: usize = 6;
/// Units per member that make sharing out fair.
const UNITS_PER_MEMBER: usize = 4;

/// How a product is cut up. A function of shapes, path and team size; results do not depend on it.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    rows: usize,
    columns: usize,
    rows_per_unit: usize,
    columns_per_unit: usize,
    /// Whether x is multiplied where it lies.
    x_in_place: bool,
    /// Whether a unit's weights are unpacked to scratch before its tiles run.
    unpack_weights: bool,
    /// Bytes of an unpacked row of x or w.
    unpacked_row: usize,
    /// Bytes of scratch: x tile, unpacked weights, sums.
    scratch: [Option<usize>; 3],
}

/// Which rows are unpacked in scratch: the address of the first, their number and the bytes of each.
#[derive(Default)]
pub(super) struct Prepared(Option<(*const u8, usize, usize)>);

impl Plan {
    #[inline(always)]
    pub(super) fn new<S: Simd, D: Dot>(weights: &RawWeights, tuning: &Tuning, rows: usize, threads: usize) -> Self {
        let columns = weights.rows;
        let stored_row = weights.blocks().saturating_mul(BLOCK_BYTES);
        let unpacked_row = weights.blocks().saturating_mul(D::PARTS * D::OPERAND_BYTES);
        let one_tile = rows <= S::TILE_ROWS;
        // Unpacking to scratch is a pass of its own over the weights, which two tiles of x do not pay for.
        let unpack_weights = !D::PLAIN && rows > DIRECT_TILES * S::TILE_ROWS;
        let row_bytes = if unpack_weights { unpacked_row } else { stored_row };
        let budget = if one_tile { tuning.stream_bytes } else { tuning.cached_bytes };
        let fair = columns.div_ceil(threads.saturating_mul(UNITS_PER_MEMBER));
        let columns_per_unit = (budget / row_bytes.max(1)).min(fair).next_multiple_of(TILE_COLUMNS).max(TILE_COLUMNS);
        const { assert!(S::TILE_ROWS <= MOST_ROWS) };
        let column_units = columns.div_ceil(columns_per_unit).max(1);
        // Too few columns for all members: cut the rows as well.
        let row_units = (threads * UNITS_PER_MEMBER).div_ceil(column_units).min(rows / (2 * S::TILE_ROWS)).max(1);
        let rows_per_unit = rows.div_ceil(row_units).next_multiple_of(S::TILE_ROWS).max(1);
        let x_in_place = D::PLAIN && weights.row_bytes().is_multiple_of(BLOCK_BYTES);
        let x_rows = if x_in_place { 0 } else { S::TILE_ROWS };
        let w_rows = if unpack_weights { columns_per_unit } else { 0 };
        let sums = if one_tile { 0 } else { columns_per_unit };
        Self {
            rows,
            columns,
            rows_per_unit,
            columns_per_unit,
            x_in_place,
            unpack_weights,
            unpacked_row,
            scratch: [
                unpacked_row.checked_mul(x_rows),
                unpacked_row.checked_mul(w_rows),
                sums.checked_mul(S::TILE_ROWS * size_of::<D::Sum>()),
            ],
        }
    }

    /// Bytes of scratch that each member needs.
    pub(super) fn scratch_bytes(&self) -> Option<usize> {
        self.scratch.iter().try_fold(0usize, |sum, part| sum.checked_add(part.as_ref().copied()?))
    }

    fn row_units(&self) -> usize {
        self.rows.div_ceil(self.rows_per_unit)
    }

    /// The number of units.
    pub(super) fn units(&self) -> usize {
        self.row_units() * self.columns.div_ceil(self.columns_per_unit)
    }

    /// The rows of x and of w of a unit.
    pub(super) fn unit(&self, index: usize) -> (Range<usize>, Range<usize>) {
        let row = index % self.row_units() * self.rows_per_unit;
        let column = index / self.row_units() * self.columns_per_unit;
        (row..(row + self.rows_per_unit).min(self.rows), column..(column + self.columns_per_unit).min(self.columns))
    }
}

/// What the tiles of a unit share.
struct Unit<'a> {
    job: &'a Job,
    /// Rows of w.
    columns: Range<usize>,
    w: Columns,
    /// Bytes from a tile of w to the next.
    tile_stride: usize,
    /// Whole blocks of a row, and bytes of the partial one after them.
    blocks: usize,
    tail: usize,
    /// Whether the last tile of w has all its rows in memory, used or not.
    padded: bool,
    /// Sums between two runs of blocks.
    sums: *mut u8,
    /// Blocks of a run.
    run: usize,
}

/// Computes one unit.
///
/// # Safety
/// The contract of [`super::run_jobs`]; `plan` must be the job's plan for `S` and `D`.
#[inline(always)]
pub(super) unsafe fn run<S: Simd, D: Dot>(
    job: &Job,
    plan: &Plan,
    rows: Range<usize>,
    columns: Range<usize>,
    scratch: &mut [u8],
    prepared: &mut Prepared,
) {
    let weights = &job.weights;
    let x_scratch = scratch.as_mut_ptr();
    // SAFETY: scratch has the plan's bytes, of which these are the second and third part.
    let (w_scratch, sums) = unsafe {
        let w_scratch = x_scratch.add(plan.scratch[0].unwrap_or(0));
        (w_scratch, w_scratch.add(plan.scratch[1].unwrap_or(0)))
    };
    let (row_stride, block_stride) = weights.strides();
    // SAFETY: the unit's first row is a row of w.
    let begin = unsafe { weights.begin.add(weights.row_offset(columns.start)) };
    let tiled = weights.is_tiled();
    let row_bytes = weights.row_bytes();
    let stored = Unit {
        job,
        w: Columns { begin, row_stride, block_stride, next: begin },
        tile_stride: weights.row_offset(TILE_COLUMNS),
        blocks: if tiled { weights.blocks() } else { row_bytes / BLOCK_BYTES },
        tail: if tiled { 0 } else { row_bytes % BLOCK_BYTES },
        padded: tiled,
        sums,
        run: run_of_blocks::<S>(D::PARTS * D::OPERAND_BYTES, &rows),
        columns,
    };
    // SAFETY: forwarded.
    unsafe {
        if plan.unpack_weights {
            let unpacked_bytes = weights.blocks() * D::PARTS * D::OPERAND_BYTES;
            for (index, column) in stored.columns.clone().enumerate() {
                let from = weights.begin.add(weights.row_offset(column));
                let to = w_scratch.add(index * plan.unpacked_row);
                unpack_row::<S, D>(from, block_stride, row_bytes, to);
            }
            let unpacked = Unit {
                w: Columns {
                    begin: w_scratch,
                    row_stride: plan.unpacked_row,
                    block_stride: BLOCK_BYTES,
                    next: w_scratch,
                },
                tile_stride: TILE_COLUMNS * plan.unpacked_row,
                blocks: unpacked_bytes / BLOCK_BYTES,
                tail: 0,
                padded: true,
                run: run_of_blocks::<S>(BLOCK_BYTES, &rows),
                ..stored
            };
            row_tiles::<S, D, D::Unpacked>(&unpacked, plan, rows, x_scratch, prepared);
        } else {
            row_tiles::<S, D, D>(&stored, plan, rows, x_scratch, prepared);
        }
    }
}

/// Blocks after which a tile moves to the next columns: all of them if x is one tile, so that weights are one stream.
#[inline(always)]
fn run_of_blocks<S: Simd>(block_bytes: usize, rows: &Range<usize>) -> usize {
    if rows.len() <= S::TILE_ROWS { usize::MAX } else { TILE_BYTES / (S::TILE_ROWS * block_bytes) }
}

/// Unpacks a row of `row_bytes` stored bytes, whose blocks are `block_stride` apart, padding it with zeros.
///
/// # Safety
/// The row must be readable and `to` have room for all its operands.
#[inline(always)]
pub(crate) unsafe fn unpack_row<S: Simd, D: Dot>(from: *const u8, block_stride: usize, row_bytes: usize, to: *mut u8) {
    let (blocks, tail) = (row_bytes / BLOCK_BYTES, row_bytes % BLOCK_BYTES);
    // SAFETY: the caller's contract.
    unsafe {
        for block in 0..blocks {
            let stored = from.add(block * block_stride);
            S::prefetch(stored.wrapping_add(PREFETCH_BYTES));
            let operands = D::unpack(stored);
            for part in 0..D::PARTS {
                let index = block * D::PARTS + part;
                D::store(to.add(index * D::OPERAND_BYTES), operands[part]);
            }
        }
        if tail > 0 {
            let mut padded = [0u8; BLOCK_BYTES];
            let from = from.add(blocks * block_stride);
            std::ptr::copy_nonoverlapping(from, padded.as_mut_ptr(), tail);
            let operands = D::unpack(padded.as_ptr());
            for part in 0..D::PARTS {
                let index = blocks * D::PARTS + part;
                D::store(to.add(index * D::OPERAND_BYTES), operands[part]);
            }
        }
    }
}

/// All tiles of a unit. `D` unpacks x, `W` reads w.
///
/// # Safety
/// The contract of [`run`].
#[inline(always)]
unsafe fn row_tiles<S: Simd, D: Dot, W: Dot<Operand = D::Operand>>(
    unit: &Unit<'_>,
    plan: &Plan,
    rows: Range<usize>,
    x_scratch: *mut u8,
    prepared: &mut Prepared,
) {
    let job = unit.job;
    let row_bytes = job.weights.row_bytes();
    let tiles = rows.len().div_ceil(S::TILE_ROWS);
    for tile in 0..tiles {
        let share = crate::team::partition(rows.len(), tile, tiles);
        let (first, count) = (rows.start + share.start, share.len());
        // SAFETY: the rows are rows of x, and the scratch has room for TILE_ROWS unpacked rows.
        unsafe {
            let mut x = job.x.add(first * row_bytes);
            let mut x_stride = row_bytes;
            if !plan.x_in_place {
                let wanted = Some((x, count, row_bytes));
                if prepared.0 != wanted {
                    for row in 0..count {
                        let to = x_scratch.add(row * plan.unpacked_row);
                        unpack_row::<S, D>(x.add(row * row_bytes), BLOCK_BYTES, row_bytes, to);
                    }
                    prepared.0 = wanted;
                }
                x = x_scratch;
                x_stride = plan.unpacked_row;
            }
            row_tile::<S, W>(unit, x, x_stride, first..first + count);
        }
    }
}

/// Some rows of x, at most a tile's, times all columns of the unit.
///
/// # Safety
/// The contract of [`run`]; x must be `rows.len()` unpacked rows, `x_stride` bytes apart.
#[inline(always)]
unsafe fn row_tile<S: Simd, D: Dot>(unit: &Unit<'_>, x: *const u8, x_stride: usize, rows: Range<usize>) {
    let columns = unit.columns.len();
    let mut block = 0;
    loop {
        let count = unit.run.min(unit.blocks - block);
        let ends = block + count == unit.blocks;
        let mut column = 0;
        while column < columns {
            let whole = unit.padded || column + TILE_COLUMNS <= columns;
            let tile = column / TILE_COLUMNS * unit.tile_stride + column % TILE_COLUMNS * unit.w.row_stride;
            let mut totals = [[0.0f32; TILE_COLUMNS]; MOST_ROWS];
            // SAFETY: the tile is part of the unit; its saved sums are part of the scratch, `rows` for each column.
            unsafe {
                let begin = unit.w.begin.add(tile);
                let end = begin.wrapping_add((block + count) * unit.w.block_stride);
                let next = if ends { begin.wrapping_add(unit.tile_stride) } else { end };
                let tile = Tile {
                    x: x.add(block * D::PARTS * D::OPERAND_BYTES),
                    x_stride,
                    w: Columns { begin: begin.add(block * unit.w.block_stride), next, ..unit.w },
                    blocks: count,
                    tail: unit.tail,
                    sums: Sums {
                        saved: unit.sums.wrapping_add(column * rows.len() * size_of::<D::Sum>()),
                        begins: block == 0,
                        ends,
                        totals: totals.as_mut_ptr().cast(),
                        totals_stride: TILE_COLUMNS,
                    },
                };
                tile::multiply::<S, D>(rows.len(), whole, &tile);
                if ends {
                    let valid = if whole { TILE_COLUMNS.min(columns - column) } else { 1 };
                    for (row, totals) in rows.clone().zip(&totals) {
                        store(unit.job, row, unit.columns.start + column, &totals[..valid]);
                    }
                }
            }
            column += if whole { TILE_COLUMNS } else { 1 };
        }
        if ends {
            return;
        }
        block += count;
    }
}

/// Scales, rounds and writes sums to row `row`, from column `column` on.
///
/// # Safety
/// The places must be inside y.
#[inline(always)]
unsafe fn store(job: &Job, row: usize, column: usize, sums: &[f32]) {
    let at = row * job.weights.rows + column;
    // SAFETY: the caller's contract; y need not be aligned.
    unsafe {
        match job.output {
            ElementType::Bf16 => {
                for (index, &sum) in sums.iter().enumerate() {
                    let to = job.y.cast::<u16>().add(at + index);
                    to.write_unaligned(to_bf16(sum * job.scale));
                }
            }
            ElementType::F16 => {
                for (index, &sum) in sums.iter().enumerate() {
                    let to = job.y.cast::<u16>().add(at + index);
                    to.write_unaligned(to_f16(sum * job.scale));
                }
            }
            ElementType::F32 | ElementType::F8E4M3 => {
                for (index, &sum) in sums.iter().enumerate() {
                    let to = job.y.cast::<f32>().add(at + index);
                    to.write_unaligned(canonical(sum * job.scale));
                }
            }
        }
    }
}
