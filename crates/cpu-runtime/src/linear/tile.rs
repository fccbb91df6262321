//! The register tile: a few rows of x times a few rows of w.

use super::TILE_COLUMNS;
use crate::isa::Task;
use crate::simd::{BLOCK_BYTES, Dot, Simd};
use std::marker::PhantomData;

/// Bytes ahead of use at which weights are asked for, over all rows of a tile together.
const PREFETCH_BYTES: usize = 4096;

/// Rows of w as a tile reads them.
#[derive(Clone, Copy)]
pub(crate) struct Columns {
    /// The first block of the first row.
    pub(crate) begin: *const u8,
    /// Bytes from a row to the next.
    pub(crate) row_stride: usize,
    /// Bytes from a block to the next of the same row.
    pub(crate) block_stride: usize,
    /// What is read after this tile, to be fetched in time; may be any address.
    pub(crate) next: *const u8,
}

/// Where the sums of a tile begin and end.
#[derive(Clone, Copy)]
pub(crate) struct Sums {
    /// Sums to go on from and to leave behind, `rows × columns` vectors, if the tile is not the whole of K.
    pub(crate) saved: *mut u8,
    /// Whether the tile begins K; otherwise it goes on from the saved sums.
    pub(crate) begins: bool,
    /// Whether the tile ends K; otherwise it saves its sums.
    pub(crate) ends: bool,
    /// Where the totals go when K ends, and numbers from a row to the next.
    pub(crate) totals: *mut f32,
    pub(crate) totals_stride: usize,
}

/// A product of a few rows over a run of blocks.
#[derive(Clone, Copy)]
pub(crate) struct Tile {
    /// Unpacked rows of x, the run's first block.
    pub(crate) x: *const u8,
    pub(crate) x_stride: usize,
    pub(crate) w: Columns,
    /// Whole blocks.
    pub(crate) blocks: usize,
    /// Bytes of a partial block after them.
    pub(crate) tail: usize,
    pub(crate) sums: Sums,
}

/// Multiplies `rows` rows of x, at most [`Simd::TILE_ROWS`], with [`TILE_COLUMNS`] rows of w, or with one if not `whole`.
///
/// # Safety
/// x, w and the sums must be valid for what the tile says (w not for its `next`); the machine must have the features of `S`.
#[inline(always)]
pub(crate) unsafe fn multiply<S: Simd, D: Dot>(rows: usize, whole: bool, tile: &Tile) {
    // SAFETY: the caller's contract.
    unsafe {
        if !whole {
            for row in 0..rows {
                let mut one = *tile;
                one.x = tile.x.add(row * tile.x_stride);
                one.sums.saved = tile.sums.saved.wrapping_add(row * size_of::<D::Sum>());
                one.sums.totals = tile.sums.totals.wrapping_add(row * tile.sums.totals_stride);
                S::call(Run::<D, 1, 1>(one, PhantomData));
            }
            return;
        }
        let tile = *tile;
        match rows {
            1 => S::call(Run::<D, 1, TILE_COLUMNS>(tile, PhantomData)),
            2 => S::call(Run::<D, 2, TILE_COLUMNS>(tile, PhantomData)),
            3 if S::TILE_ROWS >= 3 => S::call(Run::<D, 3, TILE_COLUMNS>(tile, PhantomData)),
            4 if S::TILE_ROWS >= 4 => S::call(Run::<D, 4, TILE_COLUMNS>(tile, PhantomData)),
            5 if S::TILE_ROWS >= 5 => S::call(Run::<D, 5, TILE_COLUMNS>(tile, PhantomData)),
            6 if S::TILE_ROWS >= 6 => S::call(Run::<D, 6, TILE_COLUMNS>(tile, PhantomData)),
            _ => {}
        }
    }
}

/// A tile of `M` rows of x and `N` of w: one compiled function each.
struct Run<D, const M: usize, const N: usize>(Tile, PhantomData<D>);

impl<D: Dot, const M: usize, const N: usize> Task for Run<D, M, N> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        let Tile { x, x_stride, w, blocks, tail, sums } = self.0;
        // SAFETY: the contract of `multiply`.
        unsafe {
            let saved = sums.saved.cast::<[[D::Sum; N]; M]>();
            let mut local = if sums.begins { [[D::zero(); N]; M] } else { saved.read() };
            let mut padded = [[0u8; BLOCK_BYTES]; N];
            let mut run = (x, w, blocks);
            if sums.ends && tail > 0 {
                for (n, block) in padded.iter_mut().enumerate() {
                    let from = w.begin.add(n * w.row_stride + blocks * w.block_stride);
                    std::ptr::copy_nonoverlapping(from, block.as_mut_ptr(), tail.min(BLOCK_BYTES));
                }
            }
            loop {
                accumulate::<S, D, M, N>(run.0, x_stride, run.1, run.2, &mut local);
                if !sums.ends || tail == 0 || run.1.begin == padded.as_ptr().cast() {
                    break;
                }
                // Once more over the partial blocks, padded with zeros.
                let begin = padded.as_ptr().cast();
                let rest = Columns { begin, row_stride: BLOCK_BYTES, block_stride: BLOCK_BYTES, next: w.next };
                run = (x.add(blocks * D::PARTS * D::OPERAND_BYTES), rest, 1);
            }
            if !sums.ends {
                saved.write(local);
                return;
            }
            for (m, sums_of_row) in local.iter().enumerate() {
                let mut four = [D::zero(); TILE_COLUMNS];
                four[..N].copy_from_slice(sums_of_row);
                let totals = D::reduce(four);
                std::ptr::copy_nonoverlapping(totals.as_ptr(), sums.totals.add(m * sums.totals_stride), N);
            }
        }
    }
}

/// Adds to `sums[m][n]` the products of row m of x and row n of w over `blocks` whole blocks.
///
/// # Safety
/// x must be `M` rows of unpacked operands, `x_stride` bytes apart, w `N` rows of stored blocks; both at least `blocks`
/// blocks long. The machine must have the features of `S`.
#[inline(always)]
#[expect(
    clippy::needless_range_loop,
    reason = "counted loops over constants unroll reliably, which keeps the sums in registers"
)]
unsafe fn accumulate<S: Simd, D: Dot, const M: usize, const N: usize>(
    x: *const u8,
    x_stride: usize,
    w: Columns,
    blocks: usize,
    sums: &mut [[D::Sum; N]; M],
) {
    let ahead = (PREFETCH_BYTES / BLOCK_BYTES / N).min(blocks);
    let mut local = *sums;
    // SAFETY: every address read is within the rows that the caller vouches for.
    unsafe {
        for block in 0..blocks {
            let from = w.begin.add(block * w.block_stride);
            let target = block + ahead;
            let fetch = if target < blocks {
                w.begin.wrapping_add(target * w.block_stride)
            } else {
                w.next.wrapping_add((target - blocks) * w.block_stride)
            };
            let mut stored = [D::unpack(from); N];
            S::prefetch(fetch);
            for n in 1..N {
                stored[n] = D::unpack(from.add(n * w.row_stride));
                S::prefetch(fetch.wrapping_add(n * w.row_stride));
            }
            let x = x.add(block * D::PARTS * D::OPERAND_BYTES);
            for part in 0..D::PARTS {
                for m in 0..M {
                    let operand = D::load(x.add(m * x_stride + part * D::OPERAND_BYTES));
                    for n in 0..N {
                        local[m][n] = D::multiply_add(local[m][n], operand, stored[n][part]);
                    }
                }
            }
        }
    }
    *sums = local;
}
