//! Functions of numbers, as instructions.

use super::code::{Class, Register, emit};
use super::generator::Generator;

/// Coefficients of `sin(r) = r + r³·(…)` on ±π/4, of the Taylor series, highest power first.
const SINE: [f64; 6] =
    [1.0 / 6_227_020_800.0, -1.0 / 39_916_800.0, 1.0 / 362_880.0, -1.0 / 5_040.0, 1.0 / 120.0, -1.0 / 6.0];

/// Coefficients of `cos(r) = 1 + r²·(…)` on ±π/4, of the Taylor series, highest power first.
const COSINE: [f64; 7] = [
    -1.0 / 87_178_291_200.0,
    1.0 / 479_001_600.0,
    -1.0 / 3_628_800.0,
    1.0 / 40_320.0,
    -1.0 / 720.0,
    1.0 / 24.0,
    -1.0 / 2.0,
];

/// A double as PTX writes it.
fn double(value: f64) -> String {
    format!("0d{:016X}", value.to_bits())
}

impl Generator<'_> {
    /// `x / (1 + exp(−x))`.
    pub(super) fn silu(&mut self, x: Register) -> Register {
        let (exponent, result) = (self.float(), self.float());
        emit!(self, "mul.rn.f32 {exponent}, {x}, 0fBFB8AA3B;"); // −log2(e)
        emit!(self, "ex2.approx.f32 {exponent}, {exponent};");
        emit!(self, "add.rn.f32 {exponent}, {exponent}, 0f3F800000;");
        emit!(self, "div.rn.f32 {result}, {x}, {exponent};");
        result
    }

    /// `1 / sqrt(squares / count + epsilon)`.
    pub(super) fn inverse_root_mean_square(&mut self, squares: Register, count: usize, epsilon: Register) -> Register {
        let (mean, result) = (self.float(), self.float());
        emit!(self, "div.rn.f32 {mean}, {squares}, 0f{:08X};", (count as f32).to_bits());
        emit!(self, "add.rn.f32 {mean}, {mean}, {epsilon};");
        emit!(self, "sqrt.rn.f32 {mean}, {mean};");
        emit!(self, "rcp.rn.f32 {result}, {mean};");
        result
    }

    /// The cosine of an angle, or its sine where `is_sine` holds. Angles are large (positions times frequencies), so the
    /// multiple of π/2 is taken off in double precision, in two parts (Cody and Waite, 1980).
    pub(super) fn cosine_or_sine(&mut self, angle: Register, is_sine: Register) -> Register {
        let [x, turns, rest, square, sine, cosine] = std::array::from_fn(|_| self.code.register(Class::Double));
        let (quarter, quarters) = (self.code.register(Class::Word), self.code.register(Class::Word));
        emit!(self, "cvt.f64.f32 {x}, {angle};");
        emit!(self, "mul.rn.f64 {turns}, {x}, {};", double(std::f64::consts::FRAC_2_PI));
        emit!(self, "cvt.rni.f64.f64 {turns}, {turns};");
        emit!(self, "cvt.rni.s32.f64 {quarters}, {turns};");
        emit!(self, "neg.f64 {turns}, {turns};");
        emit!(self, "fma.rn.f64 {rest}, {turns}, {}, {x};", double(std::f64::consts::FRAC_PI_2));
        // What π/2 as a double lacks.
        emit!(self, "fma.rn.f64 {rest}, {turns}, {}, {rest};", double(6.123_233_995_736_766e-17));
        emit!(self, "mul.rn.f64 {square}, {rest}, {rest};");
        for (result, coefficients) in [(sine, &SINE[..]), (cosine, &COSINE[..])] {
            emit!(self, "mov.f64 {result}, {};", double(coefficients[0]));
            for coefficient in &coefficients[1..] {
                let constant = self.code.register(Class::Double);
                emit!(self, "mov.f64 {constant}, {};", double(*coefficient));
                emit!(self, "fma.rn.f64 {result}, {result}, {square}, {constant};");
            }
            emit!(self, "mul.rn.f64 {result}, {result}, {square};");
        }
        let one = self.code.register(Class::Double);
        emit!(self, "mov.f64 {one}, {};", double(1.0));
        emit!(self, "add.rn.f64 {cosine}, {cosine}, {one};");
        emit!(self, "fma.rn.f64 {sine}, {sine}, {rest}, {rest};");
        // sin(x) = cos(x − π/2): a sine is the cosine three quarters further.
        let (odd, negative) = (self.code.register(Class::Predicate), self.code.register(Class::Predicate));
        emit!(self, "selp.b32 {quarter}, 3, 0, {is_sine};");
        emit!(self, "add.u32 {quarter}, {quarter}, {quarters};");
        let bit = self.code.register(Class::Word);
        emit!(self, "and.b32 {bit}, {quarter}, 1;");
        emit!(self, "setp.ne.u32 {odd}, {bit}, 0;");
        emit!(self, "add.u32 {quarter}, {quarter}, 1;");
        emit!(self, "and.b32 {bit}, {quarter}, 2;");
        emit!(self, "setp.ne.u32 {negative}, {bit}, 0;");
        let (chosen, flipped) = (self.code.register(Class::Double), self.code.register(Class::Double));
        emit!(self, "selp.f64 {chosen}, {sine}, {cosine}, {odd};");
        emit!(self, "neg.f64 {flipped}, {chosen};");
        emit!(self, "selp.f64 {chosen}, {flipped}, {chosen}, {negative};");
        let result = self.float();
        emit!(self, "cvt.rn.f32.f64 {result}, {chosen};");
        result
    }
}
