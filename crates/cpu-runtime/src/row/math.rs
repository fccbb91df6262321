//! The arithmetic of row operations, the same bits on every instruction-set path: plain expressions over sixteen lanes
//! without fused multiply-add, and one order of summation.

use crate::element::{ElementType, canonical, to_bf16, to_e4m3};
use crate::simd::{E4M3_VALUES, LANES, Simd};

/// Sixteen numbers, as rows are worked on.
pub(crate) type Chunk = [f32; LANES];

/// Rounding to a storage type, with the result kept in single precision.
pub(crate) trait Rounding {
    /// Rounds to nearest, ties to even.
    fn round<S: Simd>(chunk: Chunk) -> Chunk;
}

/// Rounding to bfloat16.
pub(crate) struct ToBf16;
/// Rounding to half precision.
pub(crate) struct ToF16;
/// Rounding to single precision: only NaN payloads change.
pub(crate) struct ToF32;
/// Rounding to E4M3, clamping to ±448.
pub(crate) struct ToE4m3;

impl Rounding for ToBf16 {
    #[inline(always)]
    fn round<S: Simd>(mut chunk: Chunk) -> Chunk {
        for lane in &mut chunk {
            *lane = f32::from_bits(u32::from(to_bf16(*lane)) << 16);
        }
        chunk
    }
}

impl Rounding for ToF16 {
    #[inline(always)]
    fn round<S: Simd>(chunk: Chunk) -> Chunk {
        let mut rounded = [0.0; LANES];
        // SAFETY: the path's features are present wherever its code runs, and all three buffers have LANES numbers.
        unsafe {
            let mut codes = [0u16; LANES];
            S::store_f16(codes.as_mut_ptr(), S::load_f32(chunk.as_ptr()));
            S::store_f32(rounded.as_mut_ptr(), S::load_f16(codes.as_ptr()));
        }
        ToF32::round::<S>(rounded)
    }
}

impl Rounding for ToF32 {
    #[inline(always)]
    fn round<S: Simd>(mut chunk: Chunk) -> Chunk {
        for lane in &mut chunk {
            *lane = canonical(*lane);
        }
        chunk
    }
}

impl Rounding for ToE4m3 {
    #[inline(always)]
    fn round<S: Simd>(chunk: Chunk) -> Chunk {
        let mut codes = [0u8; LANES];
        for (code, lane) in codes.iter_mut().zip(&chunk) {
            *code = to_e4m3(*lane);
        }
        let mut rounded = [0.0; LANES];
        for (lane, code) in rounded.iter_mut().zip(&codes) {
            *lane = E4M3_VALUES[usize::from(*code)];
        }
        rounded
    }
}

/// Evaluates an expression with `$rounding` naming the rounding to an element type.
macro_rules! with_rounding {
    ($element:expr, $rounding:ident => $body:expr) => {
        match $element {
            $crate::element::ElementType::Bf16 => {
                type $rounding = $crate::row::math::ToBf16;
                $body
            }
            $crate::element::ElementType::F16 => {
                type $rounding = $crate::row::math::ToF16;
                $body
            }
            // E4M3 is the result of `Quantize` alone, which `Instruction::fits` sees to.
            $crate::element::ElementType::F32 | $crate::element::ElementType::F8E4M3 => {
                type $rounding = $crate::row::math::ToF32;
                $body
            }
        }
    };
}
pub(crate) use with_rounding;

/// The exponential function, within 2 units in the last place: `x = n · ln 2 + r` in the manner of Cody and Waite, a
/// polynomial for `exp(r)`, and the power of two in two factors, so that subnormal results round once.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    /// ln 2 in two parts, the first short enough that its multiples are exact.
    const LN_2: [f32; 2] = [0.693_359_4, -2.121_944_4e-4];
    /// 1.5 · 2^23: adding it rounds to an integer, found in the low bits.
    const ROUND: f32 = 12_582_912.0;
    // exp(89) overflows and exp(-104.5) rounds to zero; NaN passes through.
    let x = x.clamp(-104.5, 89.0);
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = (x - n * LN_2[0]) - n * LN_2[1];
    let mut p = 1.987_569_1e-4;
    p = p * r + 1.398_199_9e-3;
    p = p * r + 8.333_452e-3;
    p = p * r + 4.166_579_6e-2;
    p = p * r + 0.166_666_65;
    p = p * r + 0.5;
    let value = p * (r * r) + r + 1.0;
    let n = shifted.to_bits().wrapping_sub(ROUND.to_bits()).cast_signed();
    let half = n >> 1;
    value * power_of_two(half) * power_of_two(n.wrapping_sub(half))
}

/// 2^n for n from -126 to 127.
#[inline(always)]
fn power_of_two(n: i32) -> f32 {
    f32::from_bits(n.wrapping_add(127).cast_unsigned() << 23)
}

/// `x / (1 + exp(-x))`.
#[inline(always)]
pub(crate) fn silu(x: f32) -> f32 {
    x / (1.0 + exp(-x))
}

/// Sums sixteen lanes: i and i+8, i and i+4, i and i+2, i and i+1.
#[inline(always)]
pub(crate) fn sum(mut lanes: Chunk) -> f32 {
    let mut width = LANES / 2;
    while width > 0 {
        for lane in 0..width {
            lanes[lane] += lanes[lane + width];
        }
        width /= 2;
    }
    lanes[0]
}

/// Reads `to.len()` stored numbers as single precision.
///
/// # Safety
/// `from` must be readable for as many numbers of `element`; the path's features must be present.
#[inline(always)]
pub(crate) unsafe fn widen<S: Simd>(element: ElementType, from: *const u8, to: &mut [f32]) {
    let count = to.len();
    let whole = count / LANES * LANES;
    // SAFETY: the caller's contract; chunks of LANES end at `whole`, single numbers at `count`.
    unsafe {
        match element {
            ElementType::Bf16 => {
                for at in (0..whole).step_by(LANES) {
                    S::store_f32(to.as_mut_ptr().add(at), S::load_bf16(from.cast::<u16>().add(at)));
                }
            }
            ElementType::F16 => {
                for at in (0..whole).step_by(LANES) {
                    S::store_f32(to.as_mut_ptr().add(at), S::load_f16(from.cast::<u16>().add(at)));
                }
            }
            ElementType::F32 => {
                std::ptr::copy_nonoverlapping(from, to.as_mut_ptr().cast::<u8>(), count * 4);
                return;
            }
            ElementType::F8E4M3 => {
                for (at, value) in to.iter_mut().enumerate() {
                    *value = E4M3_VALUES[usize::from(from.add(at).read())];
                }
                return;
            }
        }
        if whole < count {
            // The rest through a padded copy, so that both conversions are the same.
            let mut codes = [0u16; LANES];
            let rest = from.cast::<u16>().add(whole);
            std::ptr::copy_nonoverlapping(rest.cast::<u8>(), codes.as_mut_ptr().cast(), (count - whole) * 2);
            let mut values = [0.0; LANES];
            let widened = match element {
                ElementType::F16 => S::load_f16(codes.as_ptr()),
                _ => S::load_bf16(codes.as_ptr()),
            };
            S::store_f32(values.as_mut_ptr(), widened);
            to[whole..].copy_from_slice(&values[..count - whole]);
        }
    }
}

/// Writes numbers in storage form. They must have been rounded to `element` before, so nothing is lost.
///
/// # Safety
/// `to` must be writable for `from.len()` numbers of `element`; the path's features must be present.
#[inline(always)]
pub(crate) unsafe fn narrow<S: Simd>(element: ElementType, from: &[f32], to: *mut u8) {
    // SAFETY: the caller's contract.
    unsafe {
        match element {
            ElementType::Bf16 => {
                for (at, value) in from.iter().enumerate() {
                    to.cast::<u16>().add(at).write_unaligned((value.to_bits() >> 16) as u16);
                }
            }
            ElementType::F16 => {
                let (chunks, rest) = from.as_chunks::<LANES>();
                for (at, chunk) in chunks.iter().enumerate() {
                    S::store_f16(to.cast::<u16>().add(at * LANES), S::load_f32(chunk.as_ptr()));
                }
                let mut values = [0.0; LANES];
                values[..rest.len()].copy_from_slice(rest);
                let mut codes = [0u16; LANES];
                S::store_f16(codes.as_mut_ptr(), S::load_f32(values.as_ptr()));
                let end = to.cast::<u16>().add(chunks.len() * LANES);
                std::ptr::copy_nonoverlapping(codes.as_ptr().cast::<u8>(), end.cast(), rest.len() * 2);
            }
            ElementType::F32 => {
                std::ptr::copy_nonoverlapping(from.as_ptr().cast::<u8>(), to, from.len() * 4);
            }
            ElementType::F8E4M3 => {
                for (at, value) in from.iter().enumerate() {
                    to.add(at).write(to_e4m3(*value));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The distance in units in the last place of the nearest single-precision number.
    fn error_in_ulps(found: f32, exact: f64) -> f64 {
        let nearest = exact as f32;
        let next = f32::from_bits(nearest.to_bits() + 1);
        (f64::from(found) - exact).abs() / (f64::from(next) - f64::from(nearest)).abs()
    }

    #[test]
    fn exp_is_within_two_units_everywhere() {
        let mut bits = 0u32;
        let mut worst = 0.0f64;
        loop {
            for x in [f32::from_bits(bits), -f32::from_bits(bits)] {
                let (found, exact) = (exp(x), f64::from(x).exp());
                if x.is_nan() {
                    assert!(found.is_nan());
                } else if exact > f64::from(f32::MAX) {
                    assert!(found == f32::INFINITY || found == f32::MAX, "exp({x}) = {found}");
                } else {
                    let error = error_in_ulps(found, exact);
                    assert!(error <= 2.0, "exp({x}) = {found}: {error} ulp");
                    worst = worst.max(error);
                }
            }
            bits += 1013;
            if bits > 0x7fc0_0000 {
                break;
            }
        }
        assert!(worst > 0.0);
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(f32::INFINITY), f32::INFINITY);
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
    }

    #[test]
    fn silu_is_close_and_carries_nan() {
        let mut x = -120.0f32;
        while x < 120.0 {
            let exact = f64::from(x) / (1.0 + (-f64::from(x)).exp());
            let found = f64::from(silu(x));
            // Where exp(-x) overflows single precision, the quotient is zero.
            assert!((found - exact).abs() <= exact.abs() * 6e-7 + 1e-36, "silu({x}) = {found}, not {exact}");
            x += 0.000_917;
        }
        assert!(silu(f32::NAN).is_nan());
        assert_eq!(silu(f32::INFINITY), f32::INFINITY);
        assert_eq!(silu(0.0), 0.0);
    }
}
