//! From tiles of sums to rows of y.

use super::pack::transpose;
use super::{TILE, TILE_BYTES};
use crate::element::ElementType;
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
    // SAFETY: the caller's contract.
    unsafe {
        let scale = _mm512_set1_ps(job.scale);
        for tile in 0..W {
            let sums = sums.add(tile * TILE_BYTES / size_of::<f32>());
            let column = place.column + tile * TILE;
            let columns = place.columns.saturating_sub(tile * TILE).min(TILE);
            let columns = if columns == TILE { u16::MAX } else { (1 << columns) - 1 };
            if x_columns == 1 {
                put(job, _mm512_mul_ps(_mm512_loadu_ps(sums), scale), (place.row, column), columns);
                continue;
            }
            let mut lines = [_mm512_setzero_si512(); TILE];
            for (column, line) in lines.iter_mut().enumerate() {
                *line = _mm512_maskz_loadu_epi32(mask, sums.add(column * x_columns).cast());
            }
            for (row, line) in transpose(lines).into_iter().enumerate().take(place.rows) {
                put(job, _mm512_mul_ps(_mm512_castsi512_ps(line), scale), (place.row + row, column), columns);
            }
        }
    }
}

/// Rounds sixteen numbers, and writes those of `columns` from `place`, a row and a column of y, on. The roundings are those of
/// [`crate::element`].
///
/// # Safety
/// As [`store`].
#[inline(always)]
unsafe fn put(job: &Job, numbers: __m512, (row, column): (usize, usize), columns: u16) {
    let at = row * job.weights.rows + column;
    // SAFETY: the caller's contract; masked stores touch the columns only.
    unsafe {
        let unordered = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(numbers, numbers);
        match job.output {
            ElementType::Bf16 => {
                let bits = _mm512_castps_si512(numbers);
                let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
                let rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
                let high = _mm512_srli_epi32::<16>(rounded);
                let high = _mm512_mask_mov_epi32(high, unordered, _mm512_set1_epi32(0x7fc0));
                _mm256_mask_storeu_epi16(job.y.cast::<i16>().add(at), columns, _mm512_cvtepi32_epi16(high));
            }
            ElementType::F16 => {
                let numbers = _mm512_mask_mov_ps(numbers, unordered, _mm512_set1_ps(f32::NAN));
                let rounded = _mm512_cvtps_ph::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(numbers);
                _mm256_mask_storeu_epi16(job.y.cast::<i16>().add(at), columns, rounded);
            }
            ElementType::F32 | ElementType::F8E4M3 => {
                let numbers = _mm512_mask_mov_ps(numbers, unordered, _mm512_set1_ps(f32::NAN));
                _mm512_mask_storeu_ps(job.y.cast::<f32>().add(at), columns, numbers);
            }
        }
    }
}
