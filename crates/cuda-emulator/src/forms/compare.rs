//! Comparisons: `setp` and `set` by type.

use super::number::{from_bfloat, from_half};
use super::{Form, alu};

fn signed(value: u32) -> i32 {
    value.cast_signed()
}

fn short(value: u32) -> i16 {
    value as u16 as i16
}

fn low(value: u32) -> u16 {
    value as u16
}

fn single(value: u32) -> f32 {
    f32::from_bits(value)
}

fn flushed(value: u32) -> f32 {
    super::number::flush(f32::from_bits(value))
}

fn long(value: u64) -> i64 {
    value.cast_signed()
}

fn same(value: u64) -> u64 {
    value
}

fn word(value: u32) -> u32 {
    value
}

fn double(value: u64) -> f64 {
    f64::from_bits(value)
}

fn bfloat(value: u32) -> f32 {
    from_bfloat(value & 0xffff)
}

macro_rules! ordered {
    ($method:ident, $of:ident, $type:literal) => {
        [
            alu!(concat!("setp.eq", $type), $method, |a, b| $of(a) == $of(b)),
            alu!(concat!("setp.ne", $type), $method, |a, b| $of(a) != $of(b)),
            alu!(concat!("setp.lt|lo", $type), $method, |a, b| $of(a) < $of(b)),
            alu!(concat!("setp.le|ls", $type), $method, |a, b| $of(a) <= $of(b)),
            alu!(concat!("setp.gt|hi", $type), $method, |a, b| $of(a) > $of(b)),
            alu!(concat!("setp.ge|hs", $type), $method, |a, b| $of(a) >= $of(b)),
        ]
    };
}

/// Those of floats: an ordered comparison with a NaN is false, an unordered one true.
macro_rules! float {
    ($method:ident, $of:ident, $type:literal) => {
        [
            alu!(concat!("setp.eq", $type), $method, |a, b| $of(a) == $of(b)),
            alu!(concat!("setp.ne", $type), $method, |a, b| $of(a) < $of(b) || $of(a) > $of(b)),
            alu!(concat!("setp.lt", $type), $method, |a, b| $of(a) < $of(b)),
            alu!(concat!("setp.le", $type), $method, |a, b| $of(a) <= $of(b)),
            alu!(concat!("setp.gt", $type), $method, |a, b| $of(a) > $of(b)),
            alu!(concat!("setp.ge", $type), $method, |a, b| $of(a) >= $of(b)),
            alu!(concat!("setp.equ", $type), $method, |a, b| !($of(a) < $of(b) || $of(a) > $of(b))),
            alu!(concat!("setp.neu", $type), $method, |a, b| $of(a) != $of(b)),
            alu!(concat!("setp.ltu", $type), $method, |a, b| {
                $of(a).partial_cmp(&$of(b)).is_none_or(|order| order.is_lt())
            }),
            alu!(concat!("setp.leu", $type), $method, |a, b| {
                $of(a).partial_cmp(&$of(b)).is_none_or(|order| order.is_le())
            }),
            alu!(concat!("setp.gtu", $type), $method, |a, b| {
                $of(a).partial_cmp(&$of(b)).is_none_or(|order| order.is_gt())
            }),
            alu!(concat!("setp.geu", $type), $method, |a, b| {
                $of(a).partial_cmp(&$of(b)).is_none_or(|order| order.is_ge())
            }),
            alu!(concat!("setp.num", $type), $method, |a, b| !$of(a).is_nan() && !$of(b).is_nan()),
            alu!(concat!("setp.nan", $type), $method, |a, b| $of(a).is_nan() || $of(b).is_nan()),
        ]
    };
}

const SIGNED: [Form; 6] = ordered!(Pww, signed, ".s32");
const UNSIGNED: [Form; 6] = ordered!(Pww, word, ".u32|b32");
const SHORT: [Form; 6] = ordered!(Pww, short, ".s16");
const LOW: [Form; 6] = ordered!(Pww, low, ".u16|b16");
const LONG: [Form; 6] = ordered!(Pqq, long, ".s64");
const QUAD: [Form; 6] = ordered!(Pqq, same, ".u64|b64");
const SINGLE: [Form; 14] = float!(Pww, single, ".f32");
const FLUSHED: [Form; 14] = float!(Pww, flushed, ".ftz.f32");
const DOUBLE: [Form; 14] = float!(Pqq, double, ".f64");
const HALF: [Form; 14] = float!(Pww, from_half, ".f16");
const BFLOAT: [Form; 14] = float!(Pww, bfloat, ".bf16");

/// The number of comparisons.
const COUNT: usize = 6 * 6 + 5 * 14;

/// Comparisons.
pub(super) const FORMS: &[Form] = &super::join::<COUNT>(&[
    &SIGNED, &UNSIGNED, &SHORT, &LOW, &LONG, &QUAD, &SINGLE, &FLUSHED, &DOUBLE, &HALF, &BFLOAT,
]);
