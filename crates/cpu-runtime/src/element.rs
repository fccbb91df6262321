//! Element types and the rounding of sums to them.

use allotrope_graph::DType;

/// The type of a stored number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ElementType {
    /// bfloat16.
    Bf16,
    /// IEEE half precision.
    F16,
    /// IEEE single precision.
    F32,
    /// FP8 E4M3 without infinities.
    F8E4M3,
}

impl ElementType {
    /// The type of a graph's tensor elements, if they are numbers that kernels compute with: integers are only followed.
    pub(crate) const fn from_dtype(dtype: DType) -> Option<Self> {
        match dtype {
            DType::Bf16 => Some(Self::Bf16),
            DType::F16 => Some(Self::F16),
            DType::F32 => Some(Self::F32),
            DType::F8E4M3 => Some(Self::F8E4M3),
            DType::I32 => None,
        }
    }

    /// Bytes of one number.
    pub const fn bytes(self) -> usize {
        match self {
            Self::F8E4M3 => 1,
            Self::Bf16 | Self::F16 => 2,
            Self::F32 => 4,
        }
    }
}

/// `value` with every NaN made the one quiet NaN, so that a NaN's payload, which depends on the order of operands, is
/// never seen.
#[inline(always)]
pub(crate) fn canonical(value: f32) -> f32 {
    if value.is_nan() { f32::from_bits(0x7fc0_0000) } else { value }
}

/// Rounds to bfloat16, to nearest, ties to even.
#[inline(always)]
pub(crate) fn to_bf16(value: f32) -> u16 {
    let bits = value.to_bits();
    let rounded = (bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16) as u16;
    if value.is_nan() { 0x7fc0 } else { rounded }
}

/// Rounds to half precision, to nearest, ties to even.
#[inline(always)]
pub(crate) fn to_f16(value: f32) -> u16 {
    half::f16::from_f32(canonical(value)).to_bits()
}

/// Rounds to E4M3, to nearest, ties to even; magnitudes above the largest number, 448, become it.
#[inline(always)]
pub(crate) fn to_e4m3(value: f32) -> u8 {
    // Written without branches, so that it becomes vector code.
    let sign = (value.to_bits() >> 24) as u8 & 0x80;
    let magnitude = value.abs().min(448.0);
    // Below 2^-6 the spacing is 2^-9: adding 1.5·2^14 leaves the multiple of 2^-9 in the lowest bits, rounded.
    let small = (magnitude + 24576.0).to_bits() & 0xf;
    let bits = magnitude.to_bits();
    let rounded = bits.wrapping_add(0x7_ffff + (bits >> 20 & 1)) >> 20;
    let normal = rounded.wrapping_sub(120 << 3);
    let code = if magnitude < 0.015625 { small } else { normal };
    if value.is_nan() { 0x7f } else { sign | code as u8 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::E4M3_VALUES;

    #[test]
    fn e4m3_rounds_to_the_nearest_code_and_ties_to_even() {
        for code in 0..0x7eu8 {
            let (low, high) = (E4M3_VALUES[usize::from(code)], E4M3_VALUES[usize::from(code) + 1]);
            assert_eq!(to_e4m3(low), code);
            assert_eq!(to_e4m3(-low), code | 0x80);
            let middle = (low + high) / 2.0;
            let even = code + (code & 1);
            assert_eq!(to_e4m3(middle), even, "between {low} and {high}");
            assert_eq!(to_e4m3(f32::from_bits(middle.to_bits() - 1)), code);
            assert_eq!(to_e4m3(f32::from_bits(middle.to_bits() + 1)), code + 1);
        }
        assert_eq!(to_e4m3(f32::INFINITY), 0x7e);
        assert_eq!(to_e4m3(f32::NEG_INFINITY), 0xfe);
        assert_eq!(to_e4m3(1e9), 0x7e);
        assert_eq!(to_e4m3(f32::NAN), 0x7f);
        assert_eq!(to_e4m3(-f32::NAN), 0x7f);
        assert_eq!(to_e4m3(-0.0), 0x80);
        assert_eq!(to_e4m3(f32::from_bits(1)), 0);
    }

    #[test]
    fn bf16_rounds_as_the_half_crate_does() {
        let mut bits = 0u32;
        loop {
            let value = f32::from_bits(bits);
            if !value.is_nan() {
                assert_eq!(to_bf16(value), half::bf16::from_f32(value).to_bits(), "{value}");
            }
            let (next, wrapped) = bits.overflowing_add(7919);
            if wrapped {
                break;
            }
            bits = next;
        }
        assert_eq!(to_bf16(f32::NAN), 0x7fc0);
    }
}
