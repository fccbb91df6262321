//! Row operations on rows of single-precision registers. Each rounds its result to the storage type where the op ends.
//!
//! Registers are whole chunks of sixteen lanes. Elementwise operations run over all of them; whatever is in the lanes
//! after a row's end, no sum and no store looks at it.

use super::math::{Chunk, Rounding, silu, sum};
use crate::simd::{LANES, Simd};

#[inline(always)]
fn plus(a: f32, b: f32) -> f32 {
    a + b
}

#[inline(always)]
fn minus(a: f32, b: f32) -> f32 {
    a - b
}

#[inline(always)]
fn times(a: f32, b: f32) -> f32 {
    a * b
}

#[inline(always)]
fn map<S: Simd, R: Rounding>(to: &mut [f32], x: &[f32], f: impl Fn(f32) -> f32) {
    for (to, x) in to.as_chunks_mut::<LANES>().0.iter_mut().zip(x.as_chunks::<LANES>().0) {
        let mut chunk: Chunk = [0.0; LANES];
        for lane in 0..LANES {
            chunk[lane] = f(x[lane]);
        }
        *to = R::round::<S>(chunk);
    }
}

#[inline(always)]
fn zip<S: Simd, R: Rounding>(to: &mut [f32], a: &[f32], b: &[f32], f: impl Fn(f32, f32) -> f32) {
    let inputs = a.as_chunks::<LANES>().0.iter().zip(b.as_chunks::<LANES>().0);
    for (to, (a, b)) in to.as_chunks_mut::<LANES>().0.iter_mut().zip(inputs) {
        let mut chunk: Chunk = [0.0; LANES];
        for lane in 0..LANES {
            chunk[lane] = f(a[lane], b[lane]);
        }
        *to = R::round::<S>(chunk);
    }
}

/// `a + b`.
#[inline(always)]
pub(super) fn add<S: Simd, R: Rounding>(to: &mut [f32], a: &[f32], b: &[f32]) {
    zip::<S, R>(to, a, b, plus);
}

/// `a − b`.
#[inline(always)]
pub(super) fn sub<S: Simd, R: Rounding>(to: &mut [f32], a: &[f32], b: &[f32]) {
    zip::<S, R>(to, a, b, minus);
}

/// `a · b`.
#[inline(always)]
pub(super) fn mul<S: Simd, R: Rounding>(to: &mut [f32], a: &[f32], b: &[f32]) {
    zip::<S, R>(to, a, b, times);
}

/// `x / (1 + exp(−x))`.
#[inline(always)]
pub(super) fn silu_row<S: Simd, R: Rounding>(to: &mut [f32], x: &[f32]) {
    map::<S, R>(to, x, silu);
}

/// `x · factor`.
#[inline(always)]
pub(super) fn mul_scalar<S: Simd, R: Rounding>(to: &mut [f32], x: &[f32], factor: f32) {
    for (to, x) in to.as_chunks_mut::<LANES>().0.iter_mut().zip(x.as_chunks::<LANES>().0) {
        let mut chunk: Chunk = [0.0; LANES];
        for lane in 0..LANES {
            chunk[lane] = x[lane] * factor;
        }
        *to = R::round::<S>(chunk);
    }
}

/// `x + term`.
#[inline(always)]
pub(super) fn add_scalar<S: Simd, R: Rounding>(to: &mut [f32], x: &[f32], term: f32) {
    for (to, x) in to.as_chunks_mut::<LANES>().0.iter_mut().zip(x.as_chunks::<LANES>().0) {
        let mut chunk: Chunk = [0.0; LANES];
        for lane in 0..LANES {
            chunk[lane] = x[lane] + term;
        }
        *to = R::round::<S>(chunk);
    }
}

/// x in another type.
#[inline(always)]
pub(super) fn cast<S: Simd, R: Rounding>(to: &mut [f32], x: &[f32]) {
    map::<S, R>(to, x, std::convert::identity);
}

/// `x / scale` (to be rounded to E4M3, which clamps).
#[inline(always)]
pub(super) fn quantize<S: Simd, R: Rounding>(to: &mut [f32], x: &[f32], scale: f32) {
    for (to, x) in to.as_chunks_mut::<LANES>().0.iter_mut().zip(x.as_chunks::<LANES>().0) {
        let mut chunk: Chunk = [0.0; LANES];
        for lane in 0..LANES {
            chunk[lane] = x[lane] / scale;
        }
        *to = R::round::<S>(chunk);
    }
}

/// `round(round(x · rsqrt(mean(x²) + epsilon)) · weight)` over every run of `width` numbers, a row or a head (Zhang
/// and Sennrich, 2019). Lanes are counted from the begin of the run, so a head has the bits of a row of its width.
/// `weight` is whole chunks.
#[inline(always)]
pub(super) fn rms_norm<S: Simd, R: Rounding>(to: &mut [f32], x: &[f32], weight: &[f32], width: usize, epsilon: f32) {
    let weight = weight.as_chunks::<LANES>().0;
    for (to, x) in to.chunks_exact_mut(width).zip(x.chunks_exact(width)) {
        let (chunks, rest) = x.as_chunks::<LANES>();
        let mut end: Chunk = [0.0; LANES];
        end[..rest.len()].copy_from_slice(rest);
        let mut squares: Chunk = [0.0; LANES];
        for x in chunks {
            add_squares(&mut squares, x);
        }
        add_squares(&mut squares, &end);
        let inverse = 1.0 / (sum(squares) / width as f32 + epsilon).sqrt();
        let (to, to_rest) = to.as_chunks_mut::<LANES>();
        for (to, (x, weight)) in to.iter_mut().zip(chunks.iter().zip(weight)) {
            *to = scaled::<S, R>(x, inverse, weight);
        }
        if let Some(weight) = weight.get(chunks.len()) {
            to_rest.copy_from_slice(&scaled::<S, R>(&end, inverse, weight)[..rest.len()]);
        }
    }
}

#[inline(always)]
fn add_squares(squares: &mut Chunk, x: &Chunk) {
    for lane in 0..LANES {
        squares[lane] += x[lane] * x[lane];
    }
}

/// `round(round(x · inverse) · weight)`.
#[inline(always)]
fn scaled<S: Simd, R: Rounding>(x: &Chunk, inverse: f32, weight: &Chunk) -> Chunk {
    let mut chunk: Chunk = [0.0; LANES];
    for lane in 0..LANES {
        chunk[lane] = x[lane] * inverse;
    }
    chunk = R::round::<S>(chunk);
    for lane in 0..LANES {
        chunk[lane] *= weight[lane];
    }
    R::round::<S>(chunk)
}

/// The cosines, then the sines, of `position · frequency`, times `scaling`. The product is rounded to single precision
/// first, as the models were trained; cosine and sine are those of double precision.
#[inline(always)]
pub(super) fn rope_angles(to: &mut [f32], position: i32, frequencies: &[f32], scaling: f32) {
    let (cosines, rest) = to.split_at_mut(frequencies.len());
    for ((cosine, sine), frequency) in cosines.iter_mut().zip(rest).zip(frequencies) {
        let phase = f64::from(position as f32 * frequency);
        *cosine = phase.cos() as f32 * scaling;
        *sine = phase.sin() as f32 * scaling;
    }
}

/// Rotates each head of a row: `[x₁·cos − x₂·sin, x₂·cos + x₁·sin]` (Su et al., 2021, in the half-split form).
/// `angles` are the cosines and sines of one head, `2 · half` numbers.
#[inline(always)]
pub(super) fn rope<S: Simd, R: Rounding>(to: &mut [f32], x: &[f32], angles: &[f32], heads: usize, half: usize) {
    let (cosines, sines) = angles[..2 * half].split_at(half);
    let width = heads * 2 * half;
    for (to, x) in to[..width].chunks_exact_mut(2 * half).zip(x[..width].chunks_exact(2 * half)) {
        let (first, second) = x.split_at(half);
        let (to_first, to_second) = to.split_at_mut(half);
        rotate(to_first, [first, second], [cosines, sines], |[a, b], [cosine, sine]| a * cosine - b * sine);
        rotate(to_second, [first, second], [cosines, sines], |[a, b], [cosine, sine]| b * cosine + a * sine);
    }
    for chunk in to.as_chunks_mut::<LANES>().0 {
        *chunk = R::round::<S>(*chunk);
    }
}

/// `f` of the numbers of a head's halves and of the cosines and sines that they are rotated with.
#[inline(always)]
fn rotate(to: &mut [f32], x: [&[f32]; 2], angles: [&[f32]; 2], f: impl Fn([f32; 2], [f32; 2]) -> f32) {
    let numbers = x[0].iter().zip(x[1]).zip(angles[0].iter().zip(angles[1]));
    for (to, ((a, b), (cosine, sine))) in to.iter_mut().zip(numbers) {
        *to = f([*a, *b], [*cosine, *sine]);
    }
}
