//! From tiles of sums to rows of y.

use super::TILE;
use super::pack::transpose;
use crate::element::{ElementType, canonical, to_bf16, to_f16};
use crate::linear::Job;
use std::arch::x86_64::*;

/// Which part of y a tile of sums is.
#[derive(Clone, Copy)]
pub(super) struct Place {
    /// The first row of x.
    pub(super) row: usize,
    /// Rows of x of the tile that exist.
    pub(super) rows: usize,
    /// The first row of w.
    pub(super) column: usize,
    /// Rows of w of the tile that exist.
    pub(super) columns: usize,
}

/// Scales and rounds a tile of sums, `[16, x_columns]` with rows that are `x_columns` long, and writes it to y.
///
/// # Safety
/// The place must be inside y and the sums be readable; the machine must have the features of the path.
#[inline(always)]
pub(super) unsafe fn store(job: &Job, sums: *const f32, x_columns: usize, place: Place) {
    // SAFETY: the caller's contract.
    unsafe {
        if x_columns == 1 {
            store_row(job, &sums.cast::<[f32; TILE]>().read(), place.row, place);
            return;
        }
        let mut tile = [_mm512_setzero_si512(); TILE];
        let mask = if x_columns == TILE { u16::MAX } else { (1 << x_columns) - 1 };
        for (column, row) in tile.iter_mut().enumerate() {
            *row = _mm512_maskz_loadu_epi32(mask, sums.add(column * x_columns).cast());
        }
        let tile = transpose(tile);
        for (index, row) in tile.iter().enumerate().take(place.rows) {
            let mut sums = [0.0f32; TILE];
            _mm512_storeu_si512(sums.as_mut_ptr().cast(), *row);
            store_row(job, &sums, place.row + index, place);
        }
    }
}

/// Writes the sums of one row of x.
///
/// # Safety
/// As [`store`].
#[inline(always)]
unsafe fn store_row(job: &Job, sums: &[f32; TILE], row: usize, place: Place) {
    let at = row * job.weights.rows + place.column;
    // SAFETY: the caller's contract; y need not be aligned.
    unsafe {
        match job.output {
            ElementType::Bf16 => {
                let rounded = sums.map(|sum| to_bf16(sum * job.scale));
                put(&rounded, job.y.cast::<u16>().add(at), place.columns);
            }
            ElementType::F16 => {
                let rounded = sums.map(|sum| to_f16(sum * job.scale));
                put(&rounded, job.y.cast::<u16>().add(at), place.columns);
            }
            ElementType::F32 | ElementType::F8E4M3 => {
                let rounded = sums.map(|sum| canonical(sum * job.scale));
                put(&rounded, job.y.cast::<f32>().add(at), place.columns);
            }
        }
    }
}

/// Writes the first `count` of some numbers.
#[inline(always)]
unsafe fn put<T: Copy>(from: &[T; TILE], to: *mut T, count: usize) {
    // SAFETY: the caller has room for `count` numbers, at most TILE.
    unsafe {
        if count == TILE {
            to.cast::<[T; TILE]>().write_unaligned(*from);
        } else {
            std::ptr::copy_nonoverlapping(from.as_ptr().cast::<u8>(), to.cast::<u8>(), count * size_of::<T>());
        }
    }
}
