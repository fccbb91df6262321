//! From tiles of sums to rows of y.

use super::pack::transpose;
use super::{TILE, TILE_BYTES};
use crate::element::{ElementType, canonical, to_bf16, to_f16};
use crate::linear::Job;
use std::arch::x86_64::*;

/// Which part of y some tiles of sums are.
#[derive(Clone, Copy)]
pub(super) struct Place {
    /// The first row of x.
    pub(super) row: usize,
    /// Rows of x that exist.
    pub(super) rows: usize,
    /// The first row of w.
    pub(super) column: usize,
    /// Rows of w that exist.
    pub(super) columns: usize,
}

/// Scales and rounds `W` tiles of sums that are side by side in y, each `[16, x_columns]`, and writes them.
///
/// # Safety
/// The place must be inside y and the sums be readable, a tile every [`TILE_BYTES`] bytes; the machine must have the
/// features of the path.
#[inline(always)]
pub(super) unsafe fn store<const W: usize>(job: &Job, sums: *const f32, x_columns: usize, place: Place) {
    let mask = if x_columns == TILE { u16::MAX } else { (1 << x_columns) - 1 };
    let scale = job.scale;
    let mut rows = [[[0.0f32; TILE]; TILE]; W];
    // SAFETY: the caller's contract.
    unsafe {
        for (tile, rows) in rows.iter_mut().enumerate() {
            let sums = sums.add(tile * TILE_BYTES / size_of::<f32>());
            if x_columns == 1 {
                rows[0] = sums.cast::<[f32; TILE]>().read();
                continue;
            }
            let mut lines = [_mm512_setzero_si512(); TILE];
            for (column, line) in lines.iter_mut().enumerate() {
                *line = _mm512_maskz_loadu_epi32(mask, sums.add(column * x_columns).cast());
            }
            for (row, line) in rows.iter_mut().zip(transpose(lines)) {
                _mm512_storeu_si512(row.as_mut_ptr().cast(), line);
            }
        }
        for row in 0..place.rows {
            let at = (place.row + row) * job.weights.rows + place.column;
            match job.output {
                ElementType::Bf16 => {
                    let line = round(&rows, row, |sum| to_bf16(sum * scale));
                    put(&line, job.y.cast::<u16>().add(at), place.columns);
                }
                ElementType::F16 => {
                    let line = round(&rows, row, |sum| to_f16(sum * scale));
                    put(&line, job.y.cast::<u16>().add(at), place.columns);
                }
                ElementType::F32 | ElementType::F8E4M3 => {
                    let line = round(&rows, row, |sum| canonical(sum * scale));
                    put(&line, job.y.cast::<f32>().add(at), place.columns);
                }
            }
        }
    }
}

/// One row of all tiles, rounded.
#[inline(always)]
fn round<T: Copy + Default, const W: usize>(
    rows: &[[[f32; TILE]; TILE]; W],
    row: usize,
    to: impl Fn(f32) -> T,
) -> [[T; TILE]; W] {
    // Written as loops: `map` of arrays does not become vector instructions.
    let mut line = [[T::default(); TILE]; W];
    for (line, rows) in line.iter_mut().zip(rows) {
        for (number, sum) in line.iter_mut().zip(&rows[row]) {
            *number = to(*sum);
        }
    }
    line
}

/// Writes the first `count` of some numbers.
#[inline(always)]
unsafe fn put<T: Copy, const W: usize>(from: &[[T; TILE]; W], to: *mut T, count: usize) {
    // SAFETY: the caller has room for `count` numbers, at most as many as there are.
    unsafe {
        if count == W * TILE {
            to.cast::<[[T; TILE]; W]>().write_unaligned(*from);
        } else {
            std::ptr::copy_nonoverlapping(from.as_ptr().cast::<u8>(), to.cast::<u8>(), count * size_of::<T>());
        }
    }
}
