//! Single and double precision. The approximations of the hardware are computed in `f64` and rounded once.

use super::number::{Rounding, add_to_odd, bits, flush, fused, to_single};
use super::{Form, alu};

fn f(value: u32) -> f32 {
    f32::from_bits(value)
}

/// An input of a form that flushes subnormals.
fn z(value: u32) -> f32 {
    flush(f32::from_bits(value))
}

fn d(value: u64) -> f64 {
    f64::from_bits(value)
}

fn b(value: f32) -> u32 {
    bits(value)
}

fn wide(value: f64) -> u64 {
    if value.is_nan() { 0x7fff_ffff_ffff_ffff } else { value.to_bits() }
}

fn saturate(value: f32) -> f32 {
    if value.is_nan() { 0.0 } else { value.clamp(0.0, 1.0) }
}

fn sum(x: f32, y: f32, rounding: Rounding) -> u32 {
    b(to_single(add_to_odd(f64::from(x), f64::from(y)), rounding))
}

fn product(x: f32, y: f32, rounding: Rounding) -> u32 {
    b(to_single(f64::from(x) * f64::from(y), rounding))
}

/// The smaller one; a number wins over a NaN, and -0 is smaller than +0.
pub(super) fn minimum(x: f32, y: f32) -> f32 {
    if x.is_nan() || y < x || (x == y && y.is_sign_negative()) { y } else { x }
}

/// The larger one, likewise.
pub(super) fn maximum(x: f32, y: f32) -> f32 {
    if x.is_nan() || y > x || (x == y && y.is_sign_positive()) { y } else { x }
}

fn reciprocal(x: f32) -> f32 {
    (1.0 / f64::from(x)) as f32
}

fn reciprocal_root(x: f32) -> f32 {
    (1.0 / f64::from(x).sqrt()) as f32
}

fn power_of_two(x: f32) -> f32 {
    f64::from(x).exp2() as f32
}

fn logarithm(x: f32) -> f32 {
    f64::from(x).log2() as f32
}

/// A division in a direction, from its remainder.
fn divide(x: f32, y: f32, rounding: Rounding) -> u32 {
    let quotient = f64::from(x) / f64::from(y);
    let remainder = (-quotient).mul_add(f64::from(y), f64::from(x));
    // The `f64` quotient is not exact: move it off a boundary of `f32` to the side where the true one lies.
    let exact = remainder == 0.0 || !quotient.is_finite() || remainder.is_nan();
    let up = (remainder > 0.0) == (y > 0.0);
    let moved = if exact {
        quotient
    } else if up {
        quotient.next_up()
    } else {
        quotient.next_down()
    };
    b(to_single(moved, rounding))
}

fn root(x: f32, rounding: Rounding) -> u32 {
    let root = f64::from(x).sqrt();
    let remainder = (-root).mul_add(root, f64::from(x));
    let moved = if remainder > 0.0 {
        root.next_up()
    } else if remainder < 0.0 {
        root.next_down()
    } else {
        root
    };
    b(to_single(moved, rounding))
}

/// Single and double precision.
pub(super) const FORMS: &[Form] = &[
    alu!("add.rn?.f32", www, |x, y| b(f(x) + f(y))),
    alu!("add.rn?.ftz.f32", www, |x, y| b(flush(z(x) + z(y)))),
    alu!("add.rn?.sat.f32", www, |x, y| b(saturate(f(x) + f(y)))),
    alu!("add.rz.f32", www, |x, y| sum(f(x), f(y), Rounding::Zero)),
    alu!("add.rm.f32", www, |x, y| sum(f(x), f(y), Rounding::Down)),
    alu!("add.rp.f32", www, |x, y| sum(f(x), f(y), Rounding::Up)),
    alu!("sub.rn?.f32", www, |x, y| b(f(x) - f(y))),
    alu!("sub.rn?.ftz.f32", www, |x, y| b(flush(z(x) - z(y)))),
    alu!("sub.rn?.sat.f32", www, |x, y| b(saturate(f(x) - f(y)))),
    alu!("mul.rn?.f32", www, |x, y| b(f(x) * f(y))),
    alu!("mul.rn?.ftz.f32", www, |x, y| b(flush(z(x) * z(y)))),
    alu!("mul.rn?.sat.f32", www, |x, y| b(saturate(f(x) * f(y)))),
    alu!("mul.rz.f32", www, |x, y| product(f(x), f(y), Rounding::Zero)),
    alu!("mul.rm.f32", www, |x, y| product(f(x), f(y), Rounding::Down)),
    alu!("mul.rp.f32", www, |x, y| product(f(x), f(y), Rounding::Up)),
    alu!("fma.rn.f32", wwww, |x, y, c| b(fused(f(x), f(y), f(c)) as f32)),
    alu!("fma.rn.ftz.f32", wwww, |x, y, c| b(flush(fused(z(x), z(y), z(c)) as f32))),
    alu!("fma.rn.sat.f32", wwww, |x, y, c| b(saturate(fused(f(x), f(y), f(c)) as f32))),
    alu!("fma.rn.relu.f32", wwww, |x, y, c| b(maximum(fused(f(x), f(y), f(c)) as f32, 0.0))),
    alu!("fma.rz.f32", wwww, |x, y, c| b(to_single(fused(f(x), f(y), f(c)), Rounding::Zero))),
    alu!("fma.rm.f32", wwww, |x, y, c| b(to_single(fused(f(x), f(y), f(c)), Rounding::Down))),
    alu!("fma.rp.f32", wwww, |x, y, c| b(to_single(fused(f(x), f(y), f(c)), Rounding::Up))),
    alu!("fma.rz.ftz.f32", wwww, |x, y, c| b(flush(to_single(fused(z(x), z(y), z(c)), Rounding::Zero)))),
    alu!("fma.rm.ftz.f32", wwww, |x, y, c| b(flush(to_single(fused(z(x), z(y), z(c)), Rounding::Down)))),
    alu!("fma.rp.ftz.f32", wwww, |x, y, c| b(flush(to_single(fused(z(x), z(y), z(c)), Rounding::Up)))),
    alu!("add.rz.ftz.f32", www, |x, y| b(flush(f32::from_bits(sum(z(x), z(y), Rounding::Zero))))),
    alu!("mul.rz.ftz.f32", www, |x, y| b(flush(f32::from_bits(product(z(x), z(y), Rounding::Zero))))),
    alu!("div.rn.f32", www, |x, y| b(f(x) / f(y))),
    alu!("div.rn.ftz.f32", www, |x, y| b(flush(z(x) / z(y)))),
    alu!("div.full|approx.f32", www, |x, y| b(f(x) / f(y))),
    alu!("div.full|approx.ftz.f32", www, |x, y| b(flush(z(x) / z(y)))),
    alu!("div.rz.f32", www, |x, y| divide(f(x), f(y), Rounding::Zero)),
    alu!("div.rm.f32", www, |x, y| divide(f(x), f(y), Rounding::Down)),
    alu!("div.rp.f32", www, |x, y| divide(f(x), f(y), Rounding::Up)),
    alu!("rcp.rn.f32", ww, |x| b(1.0 / f(x))),
    alu!("rcp.rn.ftz.f32", ww, |x| b(flush(1.0 / z(x)))),
    alu!("rcp.rz.f32", ww, |x| divide(1.0, f(x), Rounding::Zero)),
    alu!("rcp.approx.f32", ww, |x| b(reciprocal(f(x)))),
    alu!("rcp.approx.ftz.f32", ww, |x| b(flush(reciprocal(z(x))))),
    alu!("sqrt.rn.f32", ww, |x| b(f(x).sqrt())),
    alu!("sqrt.rn.ftz.f32", ww, |x| b(z(x).sqrt())),
    alu!("sqrt.rz.f32", ww, |x| root(f(x), Rounding::Zero)),
    alu!("sqrt.approx.f32", ww, |x| b(f(x).sqrt())),
    alu!("sqrt.approx.ftz.f32", ww, |x| b(z(x).sqrt())),
    alu!("rsqrt.approx.f32", ww, |x| b(reciprocal_root(f(x)))),
    alu!("rsqrt.approx.ftz.f32", ww, |x| b(reciprocal_root(z(x)))),
    alu!("ex2.approx.f32", ww, |x| b(power_of_two(f(x)))),
    alu!("ex2.approx.ftz.f32", ww, |x| b(flush(power_of_two(z(x))))),
    alu!("lg2.approx.f32", ww, |x| b(logarithm(f(x)))),
    alu!("lg2.approx.ftz.f32", ww, |x| b(logarithm(z(x)))),
    alu!("sin.approx.f32", ww, |x| b(f64::from(f(x)).sin() as f32)),
    alu!("sin.approx.ftz.f32", ww, |x| b(flush(f64::from(z(x)).sin() as f32))),
    alu!("cos.approx.f32", ww, |x| b(f64::from(f(x)).cos() as f32)),
    alu!("cos.approx.ftz.f32", ww, |x| b(flush(f64::from(z(x)).cos() as f32))),
    alu!("tanh.approx.f32", ww, |x| b(f64::from(f(x)).tanh() as f32)),
    alu!("neg.f32", ww, |x| x ^ 0x8000_0000),
    alu!("neg.ftz.f32", ww, |x| z(x).to_bits() ^ 0x8000_0000),
    alu!("abs.f32", ww, |x| x & 0x7fff_ffff),
    alu!("abs.ftz.f32", ww, |x| z(x).to_bits() & 0x7fff_ffff),
    alu!("min.f32", www, |x, y| b(minimum(f(x), f(y)))),
    alu!("min.ftz.f32", www, |x, y| b(minimum(z(x), z(y)))),
    alu!("max.f32", www, |x, y| b(maximum(f(x), f(y)))),
    alu!("max.ftz.f32", www, |x, y| b(maximum(z(x), z(y)))),
    alu!("min.NaN.f32", www, |x, y| {
        if f(x).is_nan() || f(y).is_nan() { b(f32::NAN) } else { b(minimum(f(x), f(y))) }
    }),
    alu!("max.NaN.f32", www, |x, y| {
        if f(x).is_nan() || f(y).is_nan() { b(f32::NAN) } else { b(maximum(f(x), f(y))) }
    }),
    alu!("copysign.f32", www, |x, y| (y & 0x7fff_ffff) | (x & 0x8000_0000)),
    alu!("add.rn?.f64", qqq, |x, y| wide(d(x) + d(y))),
    alu!("sub.rn?.f64", qqq, |x, y| wide(d(x) - d(y))),
    alu!("mul.rn?.f64", qqq, |x, y| wide(d(x) * d(y))),
    alu!("fma.rn.f64", qqqq, |x, y, c| wide(d(x).mul_add(d(y), d(c)))),
    alu!("div.rn.f64", qqq, |x, y| wide(d(x) / d(y))),
    alu!("rcp.rn.f64", qq, |x| wide(1.0 / d(x))),
    alu!("sqrt.rn.f64", qq, |x| wide(d(x).sqrt())),
    alu!("rcp.approx.ftz.f64", qq, |x| wide(1.0 / d(x))),
    alu!("rsqrt.approx.f64", qq, |x| wide(1.0 / d(x).sqrt())),
    alu!("rsqrt.approx.ftz.f64", qq, |x| wide(1.0 / d(x).sqrt())),
    alu!("neg.f64", qq, |x| x ^ 1 << 63),
    alu!("abs.f64", qq, |x| x & !(1 << 63)),
    alu!("min.f64", qqq, |x, y| wide(d(x).min(d(y)))),
    alu!("max.f64", qqq, |x, y| wide(d(x).max(d(y)))),
];
