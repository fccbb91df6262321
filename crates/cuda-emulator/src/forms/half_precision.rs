//! f16, bf16 and pairs of them. Sums and products of two are exact enough in `f32` to round once; fused ones go by
//! [`number::add_to_odd`].

use super::float::{maximum, minimum};
use super::number::{self, from_bfloat, from_half, to_bfloat, to_half};
use super::{Form, alu};

fn halves(a: u32, b: u32, operation: impl Fn(f32, f32) -> f32) -> u32 {
    let one = |a, b| to_half(operation(from_half(a), from_half(b)));
    one(a & 0xffff, b & 0xffff) | one(a >> 16, b >> 16) << 16
}

fn bfloats(a: u32, b: u32, operation: impl Fn(f32, f32) -> f32) -> u32 {
    let one = |a, b| to_bfloat(operation(from_bfloat(a), from_bfloat(b)));
    one(a & 0xffff, b & 0xffff) | one(a >> 16, b >> 16) << 16
}

fn half(a: u32, b: u32, operation: impl Fn(f32, f32) -> f32) -> u32 {
    to_half(operation(from_half(a), from_half(b)))
}

fn bfloat(a: u32, b: u32, operation: impl Fn(f32, f32) -> f32) -> u32 {
    to_bfloat(operation(from_bfloat(a & 0xffff), from_bfloat(b & 0xffff)))
}

fn fused_half(a: u32, b: u32, c: u32) -> u32 {
    number::odd_to_half(number::fused(from_half(a), from_half(b), from_half(c)))
}

fn fused_bfloat(a: u32, b: u32, c: u32) -> u32 {
    number::odd_to_bfloat(number::fused(from_bfloat(a), from_bfloat(b), from_bfloat(c)))
}

fn pairwise(a: u32, b: u32, c: u32, operation: impl Fn(u32, u32, u32) -> u32) -> u32 {
    operation(a & 0xffff, b & 0xffff, c & 0xffff) | operation(a >> 16, b >> 16, c >> 16) << 16
}

fn add(a: f32, b: f32) -> f32 {
    a + b
}

fn subtract(a: f32, b: f32) -> f32 {
    a - b
}

fn multiply(a: f32, b: f32) -> f32 {
    a * b
}

/// A NaN if either is one.
fn maximum_nan(a: f32, b: f32) -> f32 {
    if a.is_nan() || b.is_nan() { f32::NAN } else { maximum(a, b) }
}

fn minimum_nan(a: f32, b: f32) -> f32 {
    if a.is_nan() || b.is_nan() { f32::NAN } else { minimum(a, b) }
}

/// Half precision.
pub(super) const FORMS: &[Form] = &[
    alu!("add.rn?.f16x2", www, |a, b| halves(a, b, add)),
    alu!("sub.rn?.f16x2", www, |a, b| halves(a, b, subtract)),
    alu!("mul.rn?.f16x2", www, |a, b| halves(a, b, multiply)),
    alu!("max.f16x2", www, |a, b| halves(a, b, maximum)),
    alu!("min.f16x2", www, |a, b| halves(a, b, minimum)),
    alu!("max.NaN.f16x2", www, |a, b| halves(a, b, maximum_nan)),
    alu!("min.NaN.f16x2", www, |a, b| halves(a, b, minimum_nan)),
    alu!("fma.rn.f16x2", wwww, |a, b, c| pairwise(a, b, c, fused_half)),
    alu!("add.rn?.bf16x2", www, |a, b| bfloats(a, b, add)),
    alu!("sub.rn?.bf16x2", www, |a, b| bfloats(a, b, subtract)),
    alu!("mul.rn?.bf16x2", www, |a, b| bfloats(a, b, multiply)),
    alu!("max.bf16x2", www, |a, b| bfloats(a, b, maximum)),
    alu!("min.bf16x2", www, |a, b| bfloats(a, b, minimum)),
    alu!("max.NaN.bf16x2", www, |a, b| bfloats(a, b, maximum_nan)),
    alu!("min.NaN.bf16x2", www, |a, b| bfloats(a, b, minimum_nan)),
    alu!("fma.rn.bf16x2", wwww, |a, b, c| pairwise(a, b, c, fused_bfloat)),
    alu!("add.rn?.f16", www, |a, b| half(a, b, add)),
    alu!("sub.rn?.f16", www, |a, b| half(a, b, subtract)),
    alu!("mul.rn?.f16", www, |a, b| half(a, b, multiply)),
    alu!("max.f16", www, |a, b| half(a, b, maximum)),
    alu!("min.f16", www, |a, b| half(a, b, minimum)),
    alu!("fma.rn.f16", wwww, fused_half),
    alu!("add.rn?.bf16", www, |a, b| bfloat(a, b, add)),
    alu!("sub.rn?.bf16", www, |a, b| bfloat(a, b, subtract)),
    alu!("mul.rn?.bf16", www, |a, b| bfloat(a, b, multiply)),
    alu!("max.bf16", www, |a, b| bfloat(a, b, maximum)),
    alu!("min.bf16", www, |a, b| bfloat(a, b, minimum)),
    alu!("fma.rn.bf16", wwww, |a, b, c| fused_bfloat(a & 0xffff, b & 0xffff, c & 0xffff)),
    alu!("neg.f16x2|bf16x2", ww, |a| a ^ 0x8000_8000),
    alu!("abs.f16x2|bf16x2", ww, |a| a & 0x7fff_7fff),
    alu!("neg.f16|bf16", ww, |a| (a ^ 0x8000) & 0xffff),
    alu!("abs.f16|bf16", ww, |a| a & 0x7fff),
    alu!("ex2.approx.f16", ww, |a| to_half(f64::from(from_half(a)).exp2() as f32)),
    alu!("tanh.approx.f16", ww, |a| to_half(f64::from(from_half(a)).tanh() as f32)),
];
