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
