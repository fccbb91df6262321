//! The online softmax (Milakov and Gimelshein, 2018) over tiles, and the merging of partitions.
//!
//! Scores are scaled by `scale · log2 e` and weights are powers of two, which is the same softmax.

use super::tile::{GROUPS, TILE};
use crate::simd::{LANES, Simd};

/// The state of a row within a partition.
#[derive(Clone, Copy)]
pub(super) struct RowState {
    /// The largest scaled score so far.
    pub(super) largest: f32,
    /// Sums of weights by position modulo the number of lanes.
    pub(super) totals: [f32; LANES],
}

impl RowState {
    /// No position was seen.
    pub(super) const EMPTY: Self = Self { largest: f32::NEG_INFINITY, totals: [0.0; LANES] };
}

/// What weights are relative to: a finite number while every score is -inf, so that all weights are zero.
#[inline(always)]
fn base(largest: f32) -> f32 {
    largest.max(f32::MIN)
}

/// Turns the first `visible` scores of a tile (more than none, at most as many as it has) into weights relative to the
/// largest score so far; gives the factor by which sums that are relative to an earlier one are to be multiplied.
///
/// # Safety
/// The scores must be those of a tile, the path's features present.
#[inline(always)]
pub(super) unsafe fn weigh<S: Simd>(scores: *mut f32, visible: usize, scale: f32, state: &mut RowState) -> f32 {
    // SAFETY: forwarded.
    unsafe {
        match visible == TILE {
            true => weigh_vectors::<S, true>(scores, TILE, scale, state),
            false => weigh_vectors::<S, false>(scores, visible, scale, state),
        }
    }
}

/// As [`weigh`]; with `WHOLE`, all of the tile is visible. Has no branches on scores: they could not be predicted.
///
/// # Safety
/// As [`weigh`].
#[inline(always)]
unsafe fn weigh_vectors<S: Simd, const WHOLE: bool>(
    scores: *mut f32,
    visible: usize,
    scale: f32,
    state: &mut RowState,
) -> f32 {
    // SAFETY: the caller's contract; vectors with a visible position are within the tile.
    unsafe {
        let scale = S::splat(scale);
        let lowest = S::splat(f32::NEG_INFINITY);
        let before = S::splat(state.largest);
        let mut largest = before;
        let mut scaled = [lowest; GROUPS];
        for (group, scaled) in scaled.iter_mut().enumerate() {
            let at = group * LANES;
            if !WHOLE && at >= visible {
                break;
            }
            *scaled = S::multiply(S::load_f32(scores.add(at)), scale);
            if !WHOLE && visible - at < LANES {
                *scaled = S::first_lanes(visible - at, *scaled, lowest);
            }
            largest = S::larger(*scaled, largest);
        }
        let largest = S::largest_lane(largest);
        let mut lane = [0.0; LANES];
        S::store_f32(lane.as_mut_ptr(), largest);
        state.largest = lane[0];
        let down = S::multiply(S::larger(largest, S::splat(f32::MIN)), S::splat(-1.0));
        let factor = S::exp2(S::add(before, down));
        let mut totals = S::multiply(S::load_f32(state.totals.as_ptr()), factor);
        for (group, scaled) in scaled.into_iter().enumerate() {
            if !WHOLE && group * LANES >= visible {
                break;
            }
            let weights = S::exp2(S::add(scaled, down));
            S::store_f32(scores.add(group * LANES), weights);
            totals = S::add(totals, weights);
        }
        S::store_f32(state.totals.as_mut_ptr(), totals);
        S::store_f32(lane.as_mut_ptr(), factor);
        lane[0]
    }
}

/// Two to the power of `x`, by the path's vectors.
///
/// # Safety
/// The path's features must be present.
#[inline(always)]
unsafe fn power_of_two<S: Simd>(x: f32) -> f32 {
    let mut lanes = [0.0; LANES];
    // SAFETY: the caller's contract.
    unsafe { S::store_f32(lanes.as_mut_ptr(), S::exp2(S::splat(x))) };
    lanes[0]
}

/// What is known of a row after some partitions: the largest scaled score, the sum of weights, and beside it,
/// elsewhere, the sums of weighted values.
#[derive(Clone, Copy)]
#[repr(C)]
pub(super) struct Merged {
    pub(super) largest: f32,
    pub(super) total: f32,
}

/// Adds to `merged` with `sums` what the next partition found, in the order of partitions.
///
/// # Safety
/// Both sums must be of whole vectors, as many; the path's features present.
#[inline(always)]
pub(super) unsafe fn merge<S: Simd>(merged: &mut Merged, sums: &mut [f32], next: Merged, next_sums: &[f32]) {
    let largest = merged.largest.max(next.largest);
    let base = base(largest);
    // SAFETY: the caller's contract.
    unsafe {
        let (before, after) = (power_of_two::<S>(merged.largest - base), power_of_two::<S>(next.largest - base));
        merged.total = merged.total * before + next.total * after;
        merged.largest = largest;
        let (before, after) = (S::splat(before), S::splat(after));
        for (sum, next) in sums.as_chunks_mut::<LANES>().0.iter_mut().zip(next_sums.as_chunks::<LANES>().0) {
            let rescaled = S::multiply(before, S::load_f32(sum.as_ptr()));
            S::store_f32(sum.as_mut_ptr(), S::multiply_add(rescaled, after, S::load_f32(next.as_ptr())));
        }
    }
}
