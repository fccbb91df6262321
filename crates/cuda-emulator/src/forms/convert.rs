//! `cvt`: between integers, floats and the small formats.

use super::number::{
    Rounding, bits, flush, from_bfloat, from_e4m3, from_e5m2, from_half, to_bfloat, to_bfloat_truncated, to_e4m3,
    to_e5m2, to_half, to_single, to_tensor_float,
};
use super::{Form, alu};

fn f(value: u32) -> f32 {
    f32::from_bits(value)
}

fn d(value: u64) -> f64 {
    f64::from_bits(value)
}

fn signed(value: u32) -> i32 {
    value.cast_signed()
}

fn relu(value: f32) -> f32 {
    if value <= 0.0 { 0.0 } else { value }
}

/// An integer, rounded to `f32` in a direction by way of its neighbours.
fn integer_to_single(value: i128, rounding: Rounding) -> u32 {
    let nearest = value as f32;
    let back = nearest as i128;
    let toward_zero = if value >= 0 { back > value } else { back < value };
    let result = match rounding {
        Rounding::Down if back > value => nearest.next_down(),
        Rounding::Up if back < value => nearest.next_up(),
        Rounding::Zero if toward_zero && value >= 0 => nearest.next_down(),
        Rounding::Zero if toward_zero => nearest.next_up(),
        _ => nearest,
    };
    result.to_bits()
}

/// A NaN becomes zero in a 32-bit integer, as in Rust, so casts do.
fn rounded(value: f32, rounding: Rounding) -> f32 {
    match rounding {
        Rounding::Nearest => value.round_ties_even(),
        Rounding::Zero => value.trunc(),
        Rounding::Down => value.floor(),
        Rounding::Up => value.ceil(),
    }
}

macro_rules! single_to_integer {
    ($name:literal, $rounding:ident) => {
        [
            alu!(concat!("cvt.", $name, ".ftz?.s32.f32"), ww, |a| {
                (rounded(f(a), Rounding::$rounding) as i32).cast_unsigned()
            }),
            alu!(concat!("cvt.", $name, ".ftz?.u32.f32"), ww, |a| rounded(f(a), Rounding::$rounding) as u32),
            alu!(concat!("cvt.", $name, ".ftz?.s64.f32"), qw, |a| {
                (rounded(f(a), Rounding::$rounding) as i64).cast_unsigned()
            }),
            alu!(concat!("cvt.", $name, ".ftz?.u64.f32"), qw, |a| rounded(f(a), Rounding::$rounding) as u64),
            alu!(concat!("cvt.", $name, ".f32.f32"), ww, |a| bits(rounded(f(a), Rounding::$rounding))),
            alu!(concat!("cvt.", $name, ".ftz.f32.f32"), ww, |a| bits(rounded(flush(f(a)), Rounding::$rounding))),
        ]
    };
}

macro_rules! integer_to_float {
    ($name:literal, $rounding:ident) => {
        [
            alu!(concat!("cvt.", $name, ".f32.s32"), ww, |a| {
                integer_to_single(i128::from(signed(a)), Rounding::$rounding)
            }),
            alu!(concat!("cvt.", $name, ".f32.u32"), ww, |a| integer_to_single(i128::from(a), Rounding::$rounding)),
            alu!(concat!("cvt.", $name, ".f32.s64"), wq, |a| {
                integer_to_single(i128::from(a.cast_signed()), Rounding::$rounding)
            }),
            alu!(concat!("cvt.", $name, ".f32.u64"), wq, |a| integer_to_single(i128::from(a), Rounding::$rounding)),
            alu!(concat!("cvt.", $name, ".f32.f64"), wq, |a| bits(to_single(d(a), Rounding::$rounding))),
        ]
    };
}

const TO_NEAREST: [Form; 6] = single_to_integer!("rni", Nearest);
const TO_ZERO: [Form; 6] = single_to_integer!("rzi", Zero);
const TO_DOWN: [Form; 6] = single_to_integer!("rmi", Down);
const TO_UP: [Form; 6] = single_to_integer!("rpi", Up);
const FROM_ZERO: [Form; 5] = integer_to_float!("rz", Zero);
const FROM_DOWN: [Form; 5] = integer_to_float!("rm", Down);
const FROM_UP: [Form; 5] = integer_to_float!("rp", Up);

const PLAIN: &[Form] = &[
    alu!("cvt.u32.u16", ww, |a| a & 0xffff),
    alu!("cvt.u32.u8", ww, |a| a & 255),
    alu!("cvt.s32.s16", ww, |a| i32::from(a as u16 as i16).cast_unsigned()),
    alu!("cvt.s32.s8", ww, |a| i32::from(a as u8 as i8).cast_unsigned()),
    alu!("cvt.s32.u16", ww, |a| a & 0xffff),
    alu!("cvt.s32.u8", ww, |a| a & 255),
    alu!("cvt.u16|s16.u32|s32|u16|s16", ww, |a| a & 0xffff),
    alu!("cvt.u16|s16.u8", ww, |a| a & 255),
    alu!("cvt.u16|s16.s8", ww, |a| i32::from(a as u8 as i8).cast_unsigned() & 0xffff),
    alu!("cvt.u8|s8.u32|s32|u16|s16", ww, |a| a & 255),
    alu!("cvt.u32|s32.u32|s32", ww, |a| a),
    alu!("cvt.u32|s32.u64|s64", wq, |a| a as u32),
    alu!("cvt.u16|s16.u64|s64", wq, |a| a as u32 & 0xffff),
    alu!("cvt.u8|s8.u64|s64", wq, |a| a as u32 & 255),
    alu!("cvt.u64|s64.u32", qw, u64::from),
    alu!("cvt.u64|s64.s32", qw, |a| i64::from(signed(a)).cast_unsigned()),
    alu!("cvt.u64|s64.u16", qw, |a| u64::from(a & 0xffff)),
    alu!("cvt.u64|s64.s16", qw, |a| i64::from(a as u16 as i16).cast_unsigned()),
    alu!("cvt.u64|s64.u8", qw, |a| u64::from(a & 255)),
    alu!("cvt.u64|s64.s8", qw, |a| i64::from(a as u8 as i8).cast_unsigned()),
    alu!("cvt.sat.u8.s32", ww, |a| signed(a).clamp(0, 255).cast_unsigned()),
    alu!("cvt.sat.s8.s32", ww, |a| signed(a).clamp(-128, 127).cast_unsigned() & 255),
    alu!("cvt.rn.f32.s32", ww, |a| (signed(a) as f32).to_bits()),
    alu!("cvt.rn.f32.u32", ww, |a| (a as f32).to_bits()),
    alu!("cvt.rn.f32.u16", ww, |a| ((a & 0xffff) as f32).to_bits()),
    alu!("cvt.rn.f32.s16", ww, |a| f32::from(a as u16 as i16).to_bits()),
    alu!("cvt.rn.f32.u8", ww, |a| ((a & 255) as f32).to_bits()),
    alu!("cvt.rn.f32.s8", ww, |a| f32::from(a as u8 as i8).to_bits()),
    alu!("cvt.rn.f32.s64", wq, |a| (a.cast_signed() as f32).to_bits()),
    alu!("cvt.rn.f32.u64", wq, |a| (a as f32).to_bits()),
    alu!("cvt.rn.f32.f64", wq, |a| bits(d(a) as f32)),
    alu!("cvt.rn.f64.s32", qw, |a| f64::from(signed(a)).to_bits()),
    alu!("cvt.rn.f64.u32", qw, |a| f64::from(a).to_bits()),
    alu!("cvt.rn.f64.s64", qq, |a| (a.cast_signed() as f64).to_bits()),
    alu!("cvt.rn.f64.u64", qq, |a| (a as f64).to_bits()),
    alu!("cvt.f64.f32", qw, |a| f64::from(f(a)).to_bits()),
    alu!("cvt.rni.s32.f64", wq, |a| (d(a).round_ties_even() as i32).cast_unsigned()),
    alu!("cvt.rzi.s32.f64", wq, |a| (d(a) as i32).cast_unsigned()),
    alu!("cvt.rzi.u32.f64", wq, |a| d(a) as u32),
    alu!("cvt.rzi.s64.f64", qq, |a| (d(a) as i64).cast_unsigned()),
    alu!("cvt.rzi.u64.f64", qq, |a| d(a) as u64),
    alu!("cvt.rmi.f64.f64", qq, |a| d(a).floor().to_bits()),
    alu!("cvt.rzi.f64.f64", qq, |a| d(a).trunc().to_bits()),
    alu!("cvt.rni.f64.f64", qq, |a| d(a).round_ties_even().to_bits()),
    alu!("cvt.sat.f32.f32", ww, |a| bits(if f(a).is_nan() { 0.0 } else { f(a).clamp(0.0, 1.0) })),
    alu!("cvt.ftz.f32.f32", ww, |a| bits(flush(f(a)))),
    alu!("cvt.f32.bf16", ww, |a| bits(from_bfloat(a))),
    alu!("cvt.rn.bf16.f32", ww, |a| to_bfloat(f(a))),
    alu!("cvt.rn.relu.bf16.f32", ww, |a| to_bfloat(relu(f(a)))),
    alu!("cvt.rz.bf16.f32", ww, |a| to_bfloat_truncated(f(a))),
    alu!("cvt.rn.bf16x2.f32", www, |a, b| to_bfloat(f(a)) << 16 | to_bfloat(f(b))),
    alu!("cvt.rn.relu.bf16x2.f32", www, |a, b| to_bfloat(relu(f(a))) << 16 | to_bfloat(relu(f(b)))),
    alu!("cvt.rz.bf16x2.f32", www, |a, b| to_bfloat_truncated(f(a)) << 16 | to_bfloat_truncated(f(b))),
    alu!("cvt.f32.f16", ww, |a| bits(from_half(a))),
    alu!("cvt.ftz.f32.f16", ww, |a| bits(from_half(a))),
    alu!("cvt.rn.f16.f32", ww, |a| to_half(f(a))),
    alu!("cvt.rn.f16x2.f32", www, |a, b| to_half(f(a)) << 16 | to_half(f(b))),
    alu!("cvt.rn.f16.s32", ww, |a| to_half(signed(a) as f32)),
    alu!("cvt.rn.bf16.s32", ww, |a| to_bfloat(signed(a) as f32)),
    alu!("cvt.rn.satfinite.e4m3x2.f32", www, |a, b| to_e4m3(f(a)) << 8 | to_e4m3(f(b))),
    alu!("cvt.rn.satfinite.e5m2x2.f32", www, |a, b| to_e5m2(f(a)) << 8 | to_e5m2(f(b))),
    alu!("cvt.rn.satfinite.relu.e4m3x2.f32", www, |a, b| to_e4m3(relu(f(a))) << 8 | to_e4m3(relu(f(b)))),
    alu!("cvt.rn.satfinite.e4m3x2.f16x2", ww, |a| to_e4m3(from_half(a >> 16)) << 8 | to_e4m3(from_half(a & 0xffff))),
    alu!("cvt.rn.satfinite.e5m2x2.f16x2", ww, |a| to_e5m2(from_half(a >> 16)) << 8 | to_e5m2(from_half(a & 0xffff))),
    alu!("cvt.rn.f16x2.e4m3x2", ww, |a| to_half(from_e4m3(a & 255)) | to_half(from_e4m3(a >> 8 & 255)) << 16),
    alu!("cvt.rn.f16x2.e5m2x2", ww, |a| to_half(from_e5m2(a & 255)) | to_half(from_e5m2(a >> 8 & 255)) << 16),
    alu!("cvt.rna.tf32.f32", ww, |a| to_tensor_float(f(a))),
];

/// The number of conversions.
const COUNT: usize = PLAIN.len() + 4 * 6 + 3 * 5;

/// Conversions.
pub(super) const FORMS: &[Form] =
    &super::join::<COUNT>(&[PLAIN, &TO_NEAREST, &TO_ZERO, &TO_DOWN, &TO_UP, &FROM_ZERO, &FROM_DOWN, &FROM_UP]);
