//! Number formats: decoding stored elements and rounding `f32` results to a storage type, to nearest even.

use half::{bf16, f16};

use crate::types::DType;

/// The largest finite e4m3 value.
pub const E4M3_MAX: f32 = 448.0;

/// The `f32` that an e4m3fn byte stands for; `0x7f` and `0xff` are NaN.
pub fn e4m3_to_f32(byte: u8) -> f32 {
    let magnitude = byte & 0x7f;
    if magnitude == 0x7f {
        return f32::NAN;
    }
    let (exponent, mantissa) = (i32::from(magnitude >> 3), f32::from(magnitude & 7));
    let value =
        if exponent == 0 { mantissa / 8.0 * 2f32.powi(-6) } else { (1.0 + mantissa / 8.0) * 2f32.powi(exponent - 7) };
    if byte & 0x80 == 0 { value } else { -value }
}

/// The e4m3fn byte nearest to `value` (ties to even), clamped to ±448; NaN gives `0x7f`.
pub fn f32_to_e4m3(value: f32) -> u8 {
    if value.is_nan() {
        return 0x7f;
    }
    let sign = if value.is_sign_negative() { 0x80 } else { 0 };
    let magnitude = value.abs().min(E4M3_MAX);
    let code = if magnitude < 2f32.powi(-6) {
        (magnitude * 512.0).round_ties_even() as u8
    } else {
        let bits = magnitude.to_bits();
        let rounded = (bits + 0x7_ffff + ((bits >> 20) & 1)) >> 20;
        (rounded - ((127 - 7) << 3)) as u8
    };
    sign | code
}

/// `value` rounded to the nearest value of `dtype`.
pub fn round_to(dtype: DType, value: f32) -> f32 {
    match dtype {
        DType::F32 | DType::I32 => value,
        DType::F16 => f16::from_f32(value).to_f32(),
        DType::Bf16 => bf16::from_f32(value).to_f32(),
        DType::F8E4M3 => e4m3_to_f32(f32_to_e4m3(value)),
    }
}

/// Decodes little-endian float elements; trailing bytes that make no whole element are left out.
pub fn decode(dtype: DType, bytes: &[u8]) -> Vec<f32> {
    match dtype {
        DType::F32 => bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
        DType::F16 => bytes.chunks_exact(2).map(|b| f16::from_le_bytes([b[0], b[1]]).to_f32()).collect(),
        DType::Bf16 => bytes.chunks_exact(2).map(|b| bf16::from_le_bytes([b[0], b[1]]).to_f32()).collect(),
        DType::F8E4M3 => bytes.iter().map(|b| e4m3_to_f32(*b)).collect(),
        DType::I32 => bytes.chunks_exact(4).map(|b| i32::from_le_bytes([b[0], b[1], b[2], b[3]]) as f32).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_e4m3_code_survives_a_round_trip() {
        for code in 0..=255u8 {
            let value = e4m3_to_f32(code);
            if value.is_nan() {
                assert_eq!(code & 0x7f, 0x7f);
            } else {
                assert_eq!(f32_to_e4m3(value), code, "{value}");
            }
        }
    }

    #[test]
    fn e4m3_rounds_to_the_nearest_code_and_ties_to_even() {
        for code in 0..0x7eu8 {
            let (low, high) = (e4m3_to_f32(code), e4m3_to_f32(code + 1));
            let middle = (low + high) / 2.0;
            assert_eq!(f32_to_e4m3(middle), if code % 2 == 0 { code } else { code + 1 }, "{middle}");
            assert_eq!(f32_to_e4m3(middle.next_down()), code);
            assert_eq!(f32_to_e4m3(middle.next_up()), code + 1);
        }
        assert_eq!(f32_to_e4m3(1e9), 0x7e);
        assert_eq!(f32_to_e4m3(f32::NEG_INFINITY), 0xfe);
        assert_eq!(f32_to_e4m3(f32::NAN), 0x7f);
    }
}
