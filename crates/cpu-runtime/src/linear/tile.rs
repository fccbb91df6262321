//! The register tile: a few rows of x times a few rows of w, summed over a run of blocks.

use crate::simd::{BLOCK_BYTES, Dot, Simd};
use std::marker::PhantomData;

/// Bytes ahead of use at which weights are asked for, over all rows of a tile together.
const PREFETCH_BYTES: usize = 4096;

/// Rows whose operands are already unpacked in memory, as a [`Dot`] whose stored block is one operand.
#[derive(Clone, Copy)]
pub(crate) struct Unpacked<D>(PhantomData<D>);

impl<D: Dot> Dot for Unpacked<D> {
    type Operand = D::Operand;
    type Block = [D::Operand; 1];
    type Sum = D::Sum;
    const PARTS: usize = 1;
    const OPERAND_BYTES: usize = D::OPERAND_BYTES;
    const PLAIN: bool = true;

    #[inline(always)]
    unsafe fn unpack(stored: *const u8) -> Self::Block {
        // SAFETY: the caller's contract is that of `load`.
        unsafe { [D::load(stored)] }
    }
    #[inline(always)]
    unsafe fn load(unpacked: *const u8) -> Self::Operand {
        // SAFETY: the same contract.
        unsafe { D::load(unpacked) }
    }
    #[inline(always)]
    unsafe fn store(unpacked: *mut u8, operand: Self::Operand) {
        // SAFETY: the same contract.
        unsafe { D::store(unpacked, operand) };
    }
    #[inline(always)]
    unsafe fn zero() -> Self::Sum {
        // SAFETY: the same contract.
        unsafe { D::zero() }
    }
    #[inline(always)]
    unsafe fn multiply_add(sum: Self::Sum, x: Self::Operand, w: Self::Operand) -> Self::Sum {
        // SAFETY: the same contract.
        unsafe { D::multiply_add(sum, x, w) }
    }
    #[inline(always)]
    unsafe fn reduce(sums: [Self::Sum; 4]) -> [f32; 4] {
        // SAFETY: the same contract.
        unsafe { D::reduce(sums) }
    }
}

/// Rows of w as the tile reads them.
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
pub(crate) unsafe fn accumulate<S: Simd, D: Dot, const M: usize, const N: usize>(
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

/// Adds the products over the last, partial block of `bytes` bytes (fewer than a block; none if 0).
///
/// # Safety
/// As [`accumulate`], with one block of x (padded with zeros) and `bytes` bytes of each row of w.
#[inline(always)]
pub(crate) unsafe fn accumulate_tail<S: Simd, D: Dot, const M: usize, const N: usize>(
    x: *const u8,
    x_stride: usize,
    w: Columns,
    bytes: usize,
    sums: &mut [[D::Sum; N]; M],
) {
    if bytes == 0 {
        return;
    }
    let mut padded = [[0u8; BLOCK_BYTES]; N];
    for (n, block) in padded.iter_mut().enumerate() {
        // SAFETY: `bytes` bytes of each row are readable, and a block has room for them.
        unsafe {
            let from = w.begin.add(n * w.row_stride);
            std::ptr::copy_nonoverlapping(from, block.as_mut_ptr(), bytes.min(BLOCK_BYTES));
        }
    }
    let columns =
        Columns { begin: padded.as_ptr().cast(), row_stride: BLOCK_BYTES, block_stride: BLOCK_BYTES, next: w.next };
    // SAFETY: one block of each row is readable on both sides.
    unsafe { accumulate::<S, D, M, N>(x, x_stride, columns, 1, sums) };
}
