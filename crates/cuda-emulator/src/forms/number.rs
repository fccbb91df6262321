//! Number formats: rounding to each of them, in plain integer arithmetic.

/// A rounding direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rounding {
    /// To the nearest, ties to even.
    Nearest,
    /// Towards zero.
    Zero,
    /// Towards minus infinity.
    Down,
    /// Towards plus infinity.
    Up,
}

/// The product of two `f32` plus a third, as an `f64` that keeps what rounding to fewer digits needs: where it is not
/// exact, its last bit is one, which no rounding to `f32` takes for a tie.
#[must_use]
pub fn fused(a: f32, b: f32, c: f32) -> f64 {
    add_to_odd(f64::from(a) * f64::from(b), f64::from(c))
}

/// A sum whose last bit says whether it is exact, as for [`fused`].
#[must_use]
pub fn add_to_odd(product: f64, c: f64) -> f64 {
    let sum = product + c;
    let virtual_c = sum - product;
    let error = (product - (sum - virtual_c)) + (c - virtual_c);
    let bits = sum.to_bits();
    let inexact = (error > 0.0) | (error < 0.0);
    let outward = (error > 0.0) == (sum > 0.0);
    let odd = if outward { bits.wrapping_add(1) } else { bits.wrapping_sub(1) };
    let adjust = inexact & (bits & 1 == 0) & (sum != 0.0);
    f64::from_bits(if adjust { odd } else { bits })
}

/// Rounds an `f64` to `f32` in a direction.
#[must_use]
pub fn to_single(value: f64, rounding: Rounding) -> f32 {
    let nearest = value as f32;
    let back = f64::from(nearest);
    let too_high = back > value;
    let too_low = back < value;
    match rounding {
        Rounding::Nearest => nearest,
        Rounding::Down if too_high => nearest.next_down(),
        Rounding::Up if too_low => nearest.next_up(),
        Rounding::Zero if too_high && value > 0.0 => nearest.next_down(),
        Rounding::Zero if too_low && value < 0.0 => nearest.next_up(),
        _ => nearest,
    }
}

/// Flushes a subnormal to zero of its sign.
#[must_use]
pub fn flush(value: f32) -> f32 {
    if value.is_subnormal() { 0f32.copysign(value) } else { value }
}

/// The bits of a result: a NaN is the one that the hardware gives.
#[must_use]
pub fn bits(value: f32) -> u32 {
    if value.is_nan() { 0x7fff_ffff } else { value.to_bits() }
}

/// bf16 to `f32`.
#[must_use]
pub fn from_bfloat(bits: u32) -> f32 {
    f32::from_bits(bits << 16)
}

/// `f32` to bf16, to the nearest even.
#[must_use]
pub fn to_bfloat(value: f32) -> u32 {
    let bits = value.to_bits();
    if value.is_nan() { 0x7fff } else { (bits.wrapping_add(0x7fff + (bits >> 16 & 1))) >> 16 }
}

/// `f32` to bf16, towards zero.
#[must_use]
pub fn to_bfloat_truncated(value: f32) -> u32 {
    if value.is_nan() { 0x7fff } else { value.to_bits() >> 16 }
}

/// f16 to `f32`.
#[must_use]
pub fn from_half(bits: u32) -> f32 {
    half::f16::from_bits(bits as u16).to_f32()
}

/// `f32` to f16, to the nearest even.
#[must_use]
pub fn to_half(value: f32) -> u32 {
    if value.is_nan() { 0x7fff } else { u32::from(half::f16::from_f32(value).to_bits()) }
}

/// An `f64` with an odd last bit where inexact, to f16. Going by `f32` must not round twice, so that step goes to odd
/// as well.
#[must_use]
pub fn odd_to_half(value: f64) -> u32 {
    to_half(to_odd_single(value))
}

/// The same to bf16.
#[must_use]
pub fn odd_to_bfloat(value: f64) -> u32 {
    to_bfloat(to_odd_single(value))
}

fn to_odd_single(value: f64) -> f32 {
    let truncated = to_single(value, Rounding::Zero);
    if f64::from(truncated) == value || !truncated.is_finite() {
        return truncated;
    }
    f32::from_bits(truncated.to_bits() | 1)
}

/// e4m3 to `f32`.
#[must_use]
pub fn from_e4m3(bits: u32) -> f32 {
    let sign = if bits & 0x80 == 0 { 1.0 } else { -1.0 };
    let (exponent, fraction) = ((bits >> 3 & 15) as i32, (bits & 7) as f32);
    match (exponent, bits & 0x7f) {
        (_, 0x7f) => f32::NAN,
        (0, _) => sign * fraction * 2f32.powi(-9),
        _ => sign * (8.0 + fraction) * 2f32.powi(exponent - 10),
    }
}

/// `f32` to e4m3, to the nearest even; what is too large becomes the largest number.
#[must_use]
pub fn to_e4m3(value: f32) -> u32 {
    if value.is_nan() {
        return 0x7f;
    }
    let sign = value.to_bits() >> 31 << 7;
    let size = value.abs();
    if size >= 448.0 {
        return sign | 0x7e;
    }
    sign | small_float(size, 3, -6)
}

/// e5m2 to `f32`: the upper half of an f16.
#[must_use]
pub fn from_e5m2(bits: u32) -> f32 {
    from_half((bits & 255) << 8)
}

/// `f32` to e5m2, to the nearest even; what is too large becomes the largest number.
#[must_use]
pub fn to_e5m2(value: f32) -> u32 {
    if value.is_nan() {
        return 0x7f;
    }
    let sign = value.to_bits() >> 31 << 7;
    let size = value.abs();
    if size >= 57344.0 {
        return sign | 0x7b;
    }
    sign | small_float(size, 2, -14)
}

/// The bits of a format with so many fraction bits and this least exponent. A carry out of the fraction goes into the
/// exponent.
fn small_float(size: f32, fraction: i32, least: i32) -> u32 {
    let exponent = if size.is_normal() { (size.to_bits() >> 23) as i32 - 127 } else { -127 };
    let exponent = exponent.max(least);
    let scaled = (f64::from(size) * 2f64.powi(fraction - exponent)).round_ties_even() as u32;
    let biased = (exponent - least) as u32;
    (biased << fraction) + scaled
}

/// Drops the digits that tf32 does not have, to the nearest, ties away from zero.
#[must_use]
pub fn to_tensor_float(value: f32) -> u32 {
    if value.is_finite() { value.to_bits().wrapping_add(0x1000) & !0x1fff } else { bits(value) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fused_rounds_once() {
        let mut state = 7u64;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            f32::from_bits((state >> 32) as u32)
        };
        for _ in 0..200_000 {
            let (a, b, c) = (next(), next(), next());
            let (got, expected) = (fused(a, b, c) as f32, a.mul_add(b, c));
            assert!(got.to_bits() == expected.to_bits() || got.is_nan() && expected.is_nan(), "{a:e} {b:e} {c:e}");
        }
    }

    #[test]
    fn eight_bit_formats_round_trip() {
        for bits in 0..256 {
            let value = from_e4m3(bits);
            assert!(value.is_nan() || to_e4m3(value) == bits, "e4m3 {bits:#x}");
            let value = from_e5m2(bits);
            assert!(!value.is_finite() || to_e5m2(value) == bits, "e5m2 {bits:#x}");
        }
        // Half way between two neighbours: to the even one.
        assert_eq!((to_e4m3(17.0), to_e4m3(19.0), to_e4m3(1e9), to_e4m3(-1e-9)), (0x58, 0x5a, 0x7e, 0x80));
    }

    #[test]
    fn directions() {
        let third = 1.0 / 3.0;
        assert!(to_single(third, Rounding::Down) < to_single(third, Rounding::Up));
        assert_eq!(to_single(-third, Rounding::Zero), -to_single(third, Rounding::Down));
        assert_eq!(to_single(0.5, Rounding::Up), 0.5);
    }
}
