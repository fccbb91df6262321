//! The vectors that kernels are written in: one trait, implemented once per instruction-set path.
//!
//! A [`Dot`] says how one operand type is multiplied and summed on one path, and with that the order of summation.
//! Along the K axis an operand is stored in blocks of [`BLOCK_BYTES`] bytes. A block *unpacks* to a few vectors
//! ("parts") of the form in which the multiplication takes them; which element lands in which lane of which part is
//! the path's own affair, as long as both operands are unpacked by the same routine. Every kernel, whatever its tile
//! shape or memory layout, adds parts to one vector of sums in the order block 0 part 0, block 0 part 1, …, and
//! reduces the lanes with the path's one tree. That is why an output's bits depend on its inputs and the path alone.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "x86_64")]
mod avx512_bf16;
mod portable;

#[cfg(target_arch = "x86_64")]
pub(crate) use avx2::Avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) use avx512::Avx512;
#[cfg(target_arch = "x86_64")]
pub(crate) use avx512_bf16::{Avx512Bf16, widen_e4m3_block, widen_e4m3_half};
pub(crate) use portable::Portable;

use crate::isa::Task;

/// Bytes of one stored block along K: one cache line, whatever the element type.
pub(crate) const BLOCK_BYTES: usize = 64;

/// Lanes of a [`Simd::Lanes`] vector on every path.
pub(crate) const LANES: usize = 16;

/// How rows of one element type are multiplied on one path.
///
/// # Safety
/// All methods may only run on a machine that has the features of the path. Pointers need no alignment.
pub(crate) trait Dot: Copy + 'static {
    /// A vector of unpacked elements.
    type Operand: Copy;
    /// The parts of one stored block.
    type Block: Copy + std::ops::Index<usize, Output = Self::Operand>;
    /// How unpacked operands in memory are multiplied, as stored blocks of their own; the same operands and sums.
    type Unpacked: Dot<Operand = Self::Operand, Sum = Self::Sum>;
    /// A vector of partial sums.
    type Sum: Copy;
    /// Parts of a stored block.
    const PARTS: usize;
    /// Bytes of one operand in memory, as `load` and `store` have it.
    const OPERAND_BYTES: usize;
    /// Whether unpacked operands in memory are byte for byte the stored block.
    const PLAIN: bool;

    /// Unpacks the block of [`BLOCK_BYTES`] bytes at `stored`.
    unsafe fn unpack(stored: *const u8) -> Self::Block;
    /// Reads an unpacked operand.
    unsafe fn load(unpacked: *const u8) -> Self::Operand;
    /// Writes an unpacked operand.
    unsafe fn store(unpacked: *mut u8, operand: Self::Operand);
    /// Sums of zero.
    unsafe fn zero() -> Self::Sum;
    /// `sum + x · w`, lane by lane.
    unsafe fn multiply_add(sum: Self::Sum, x: Self::Operand, w: Self::Operand) -> Self::Sum;
    /// Sums the lanes of four vectors, each in the path's one order.
    unsafe fn reduce(sums: [Self::Sum; 4]) -> [f32; 4];
}

/// An instruction-set path.
///
/// # Safety
/// All methods may only run on a machine that has the features of the path. Pointers need no alignment.
pub(crate) trait Simd: Copy + 'static {
    /// The most rows of x in a register tile.
    const TILE_ROWS: usize;
    /// Products of bfloat16 rows.
    type Bf16: Dot;
    /// Products of IEEE half-precision rows.
    type F16: Dot;
    /// Products of single-precision rows.
    type F32: Dot;
    /// Products of FP8 E4M3 rows.
    type Fp8: Dot;

    /// Runs `task` as a function of its own, compiled for the path: a boundary for code that should exist once.
    unsafe fn call<T: Task>(task: T) -> T::Output;

    /// [`LANES`] single-precision numbers.
    type Lanes: Copy;
    /// All lanes equal.
    unsafe fn splat(value: f32) -> Self::Lanes;
    /// Reads [`LANES`] numbers.
    unsafe fn load_f32(from: *const f32) -> Self::Lanes;
    /// Reads and widens [`LANES`] bfloat16 numbers.
    unsafe fn load_bf16(from: *const u16) -> Self::Lanes;
    /// Reads and widens [`LANES`] half-precision numbers.
    unsafe fn load_f16(from: *const u16) -> Self::Lanes;
    /// Writes [`LANES`] numbers.
    unsafe fn store_f32(to: *mut f32, value: Self::Lanes);
    /// Writes [`LANES`] numbers rounded to half precision, to nearest, ties to even.
    unsafe fn store_f16(to: *mut u16, value: Self::Lanes);
    /// `sum + a · b`, lane by lane, fused where the path has it.
    unsafe fn multiply_add(sum: Self::Lanes, a: Self::Lanes, b: Self::Lanes) -> Self::Lanes;
    /// Asks for the cache line of `address`, which need not be valid.
    unsafe fn prefetch(address: *const u8);

    /// Whether [`Simd::multiply_add_pairs`] is one instruction.
    const BF16_PAIRS: bool = false;
    /// `sum` and both products of pairs of bfloat16, which are the bits of the lanes of `a` and `b`.
    #[inline(always)]
    unsafe fn multiply_add_pairs(sum: Self::Lanes, a: Self::Lanes, b: Self::Lanes) -> Self::Lanes {
        let (a, b) = (to_array::<Self>(a), to_array::<Self>(b));
        // SAFETY: the caller has the features; an array is readable as pairs.
        unsafe {
            let a = Self::load_pairs_bf16(a.as_ptr().cast());
            let b = Self::load_pairs_bf16(b.as_ptr().cast());
            Self::multiply_add(Self::multiply_add(sum, a[0], b[0]), a[1], b[1])
        }
    }
    /// Reads [`LANES`] pairs of bfloat16: all first, all second elements.
    #[inline(always)]
    unsafe fn load_pairs_bf16(from: *const u8) -> [Self::Lanes; 2] {
        // SAFETY: the caller's pointer is readable for LANES pairs.
        let pairs = unsafe { from.cast::<[u32; LANES]>().read_unaligned() };
        let first = pairs.map(|pair| f32::from_bits(pair << 16));
        [from_array::<Self>(first), from_array::<Self>(pairs.map(|pair| f32::from_bits(pair & 0xffff_0000)))]
    }
    /// Reads [`LANES`] pairs of half-precision numbers: all first, all second elements.
    #[inline(always)]
    unsafe fn load_pairs_f16(from: *const u8) -> [Self::Lanes; 2] {
        // SAFETY: the caller's pointer is readable for LANES pairs, and the arrays are for LANES numbers.
        unsafe {
            let pairs = from.cast::<[u32; LANES]>().read_unaligned();
            let (first, second) = (pairs.map(|pair| pair as u16), pairs.map(|pair| (pair >> 16) as u16));
            [Self::load_f16(first.as_ptr()), Self::load_f16(second.as_ptr())]
        }
    }
    /// Reads [`LANES`] pairs of E4M3 codes: all first, all second elements.
    #[inline(always)]
    unsafe fn load_pairs_e4m3(from: *const u8) -> [Self::Lanes; 2] {
        // SAFETY: the caller's pointer is readable for LANES pairs.
        let pairs = unsafe { from.cast::<[[u8; 2]; LANES]>().read_unaligned() };
        let part = |index: usize| from_array::<Self>(pairs.map(|pair| E4M3_VALUES[usize::from(pair[index])]));
        [part(0), part(1)]
    }
    /// `a + b`, lane by lane.
    #[inline(always)]
    unsafe fn add(a: Self::Lanes, b: Self::Lanes) -> Self::Lanes {
        let (mut a, b) = (to_array::<Self>(a), to_array::<Self>(b));
        a.iter_mut().zip(b).for_each(|(a, b)| *a += b);
        from_array::<Self>(a)
    }
    /// `a · b`, lane by lane.
    #[inline(always)]
    unsafe fn multiply(a: Self::Lanes, b: Self::Lanes) -> Self::Lanes {
        let (mut a, b) = (to_array::<Self>(a), to_array::<Self>(b));
        a.iter_mut().zip(b).for_each(|(a, b)| *a *= b);
        from_array::<Self>(a)
    }
    /// The larger of `a` and `b`, lane by lane, and `b` where `a` is NaN; `b` must have none.
    #[inline(always)]
    unsafe fn larger(a: Self::Lanes, b: Self::Lanes) -> Self::Lanes {
        let (a, mut b) = (to_array::<Self>(a), to_array::<Self>(b));
        b.iter_mut().zip(a).for_each(|(b, a)| *b = if a > *b { a } else { *b });
        from_array::<Self>(b)
    }
    /// The first `count` lanes of `a`, then lanes of `b`.
    #[inline(always)]
    unsafe fn first_lanes(count: usize, a: Self::Lanes, b: Self::Lanes) -> Self::Lanes {
        let (a, mut b) = (to_array::<Self>(a), to_array::<Self>(b));
        b[..count].copy_from_slice(&a[..count]);
        from_array::<Self>(b)
    }
    /// The largest lane of `a`, which must have no NaN, in all lanes.
    #[inline(always)]
    unsafe fn largest_lane(a: Self::Lanes) -> Self::Lanes {
        let mut lanes = to_array::<Self>(a);
        let mut width = LANES / 2;
        while width > 0 {
            for lane in 0..width {
                lanes[lane] = if lanes[lane] > lanes[lane + width] { lanes[lane] } else { lanes[lane + width] };
            }
            width /= 2;
        }
        // SAFETY: the caller has the features.
        unsafe { Self::splat(lanes[0]) }
    }
    /// Two to the power of each lane, none of which is above 127, to about one unit in the last place; zero below
    /// [`LEAST_EXPONENT`].
    #[inline(always)]
    unsafe fn exp2(x: Self::Lanes) -> Self::Lanes {
        from_array::<Self>(to_array::<Self>(x).map(exp2))
    }
}

#[inline(always)]
fn to_array<S: Simd>(lanes: S::Lanes) -> [f32; LANES] {
    let mut array = [0.0; LANES];
    // SAFETY: there are vectors only where the path's features are; the array has room for one.
    unsafe { S::store_f32(array.as_mut_ptr(), lanes) };
    array
}

#[inline(always)]
fn from_array<S: Simd>(array: [f32; LANES]) -> S::Lanes {
    // SAFETY: this is called from within the methods of `Simd` only, where the path's features are.
    unsafe { S::load_f32(array.as_ptr()) }
}

/// The least exponent of [`Simd::exp2`]. Its power of two is normal: subnormal results take processors much longer.
pub(crate) const LEAST_EXPONENT: f32 = -125.0;

/// `(2^x - 1) / x` for x from -1/2 to 1/2: interpolated at Chebyshev nodes; 2^x is within 1e-8 of its value.
pub(crate) const EXP2: [f32; 6] =
    [std::f32::consts::LN_2, 0.240_226_5, 0.055_503_57, 0.009_618_083, 0.001_339_086_3, 0.000_154_531_63];

/// Two to the power of `x`, by an integer power of two and [`EXP2`].
#[inline(always)]
fn exp2(x: f32) -> f32 {
    /// 1.5 · 2^23: adding it rounds to an integer, found in the low bits.
    const ROUND: f32 = 12_582_912.0;
    let least = if x < LEAST_EXPONENT { LEAST_EXPONENT } else { x };
    let shifted = least + ROUND;
    let r = least - (shifted - ROUND);
    let p = EXP2[..5].iter().rev().fold(EXP2[5], |p, factor| p * r + factor) * r + 1.0;
    let n = shifted.to_bits().wrapping_sub(ROUND.to_bits()).cast_signed();
    let power = p * f32::from_bits(n.wrapping_add(127).cast_unsigned() << 23);
    if x < LEAST_EXPONENT { 0.0 } else { power }
}

/// The single-precision value of the E4M3 code (finite only, bias 7, no infinities; 0x7f and 0xff are NaN).
pub(crate) const fn e4m3_to_f32(code: u8) -> f32 {
    let sign = ((code & 0x80) as u32) << 24;
    let (exponent, mantissa) = ((code >> 3 & 0xf) as u32, (code & 7) as u32);
    let magnitude = match (exponent, mantissa) {
        (0xf, 7) => 0x7fc0_0000,
        (0, 0) => 0,
        (0, _) => {
            // A subnormal, mantissa · 2^-9: normalize it.
            let shift = mantissa.leading_zeros() - 28;
            ((121 - shift) << 23) | ((mantissa << shift & 7) << 20)
        }
        _ => ((exponent + 120) << 23) | (mantissa << 20),
    };
    f32::from_bits(sign | magnitude)
}

/// The values of all E4M3 codes.
pub(crate) static E4M3_VALUES: [f32; 256] = {
    let mut values = [0.0; 256];
    let mut code = 0;
    while code < 256 {
        values[code] = e4m3_to_f32(code as u8);
        code += 1;
    }
    values
};

#[cfg(test)]
mod tests {
    use super::*;

    struct CheckVectors;

    impl Task for CheckVectors {
        type Output = ();

        #[inline(always)]
        fn run<S: Simd>(self) {
            let bf16 = |value: f32| u32::from(half::bf16::from_f32(value).to_bits());
            let f16 = |value: f32| u32::from(half::f16::from_f32(value).to_bits());
            let first: [f32; LANES] = std::array::from_fn(|lane| lane as f32 - 3.5);
            let second = first.map(|value| 1.25 - value);
            // SAFETY: run on available paths only.
            unsafe {
                let (a, b) = (from_array::<S>(first), from_array::<S>(second));
                let expect = |found: S::Lanes, expected: fn(f32, f32) -> f32| {
                    let expected: [f32; LANES] = std::array::from_fn(|lane| expected(first[lane], second[lane]));
                    assert_eq!(to_array::<S>(found), expected);
                };
                expect(S::add(a, b), |a, b| a + b);
                expect(S::multiply(a, b), |a, b| a * b);
                expect(S::larger(a, b), f32::max);
                assert_eq!(to_array::<S>(S::larger(S::splat(f32::NAN), b)), second);
                assert_eq!(to_array::<S>(S::largest_lane(a)), [11.5; LANES]);
                for count in 0..=LANES {
                    let expected: [f32; LANES] =
                        std::array::from_fn(|lane| if lane < count { first[lane] } else { second[lane] });
                    assert_eq!(to_array::<S>(S::first_lanes(count, a, b)), expected);
                }
                let pairs: [u32; LANES] = std::array::from_fn(|lane| bf16(first[lane]) | bf16(second[lane]) << 16);
                let found = S::load_pairs_bf16(pairs.as_ptr().cast()).map(to_array::<S>);
                assert_eq!(found, [first, second]);
                let bits = from_array::<S>(pairs.map(f32::from_bits));
                expect(S::multiply_add_pairs(S::splat(0.5), bits, bits), |a, b| 0.5 + a * a + b * b);
                let pairs: [u32; LANES] = std::array::from_fn(|lane| f16(first[lane]) | f16(second[lane]) << 16);
                assert_eq!(S::load_pairs_f16(pairs.as_ptr().cast()).map(to_array::<S>), [first, second]);
                for code in 0..=255u8 {
                    let pairs: [[u8; 2]; LANES] = std::array::from_fn(|lane| [code ^ lane as u8, code]);
                    let found = S::load_pairs_e4m3(pairs.as_ptr().cast()).map(to_array::<S>);
                    for (lane, pair) in pairs.iter().enumerate() {
                        for (index, code) in pair.iter().enumerate() {
                            let (found, expected) = (found[index][lane], E4M3_VALUES[usize::from(*code)]);
                            assert!(found == expected || found.is_nan() && expected.is_nan(), "{code}: {found}");
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn every_path_has_the_same_vectors() {
        crate::isa::Isa::available().for_each(|isa| isa.dispatch(CheckVectors));
    }

    struct CheckExp2;

    impl Task for CheckExp2 {
        type Output = ();

        #[inline(always)]
        fn run<S: Simd>(self) {
            // SAFETY: run on available paths only.
            let exp2 = |x: f32| unsafe { to_array::<S>(S::exp2(S::splat(x)))[LANES - 1] };
            for step in -160_000..=127_000 {
                let x = step as f32 * 1e-3;
                let (found, exact) = (f64::from(exp2(x)), f64::from(x).exp2());
                let error = (found - exact).abs();
                let tolerance = if x < LEAST_EXPONENT { exact } else { exact * 1.5e-7 };
                assert!(error <= tolerance, "2^{x} = {found}, not {exact}");
            }
            for (x, expected) in [(0.0, 1.0), (-1.0, 0.5), (-125.1, 0.0), (f32::NEG_INFINITY, 0.0)] {
                assert_eq!(exp2(x), expected, "2^{x}");
            }
            assert!(exp2(f32::NAN).is_nan());
        }
    }

    #[test]
    fn powers_of_two_are_close_on_every_path() {
        crate::isa::Isa::available().for_each(|isa| isa.dispatch(CheckExp2));
    }

    #[test]
    fn e4m3_codes_have_the_values_of_the_definition() {
        for code in 0..=255u8 {
            let (exponent, mantissa) = (i32::from(code >> 3 & 15), f64::from(code & 7));
            let magnitude = match exponent {
                0 => mantissa / 8.0 * 2f64.powi(-6),
                _ => (1.0 + mantissa / 8.0) * 2f64.powi(exponent - 7),
            };
            let value = f64::from(E4M3_VALUES[usize::from(code)]);
            if code & 0x7f == 0x7f {
                assert!(value.is_nan(), "{code:#x}");
            } else {
                let sign = if code < 128 { 1.0 } else { -1.0 };
                assert_eq!(value, sign * magnitude, "{code:#x}");
                assert_eq!(value.is_sign_negative(), code >= 128, "{code:#x}");
            }
        }
        assert_eq!(E4M3_VALUES[0x7e], 448.0);
    }
}
