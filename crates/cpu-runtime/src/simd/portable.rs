//! The path in plain Rust: eight lanes, separate multiplication and addition, any processor.

use super::{BLOCK_BYTES, Dot, E4M3_VALUES, LANES, Simd};
use crate::isa::Task;
use std::marker::PhantomData;

/// Lanes of an operand on this path.
const WIDTH: usize = 8;

/// The portable path.
#[derive(Clone, Copy)]
pub(crate) struct Portable;

/// An element type that widens to single precision.
pub(crate) trait Element: Copy + 'static {
    /// Bytes of an element.
    const BYTES: usize;
    /// Reads the element at `from`.
    unsafe fn read(from: *const u8) -> f32;
}

/// bfloat16.
#[derive(Clone, Copy)]
pub(crate) struct Bf16;
/// IEEE half precision.
#[derive(Clone, Copy)]
pub(crate) struct F16;
/// IEEE single precision.
#[derive(Clone, Copy)]
pub(crate) struct F32;
/// FP8 E4M3.
#[derive(Clone, Copy)]
pub(crate) struct Fp8;

impl Element for Bf16 {
    const BYTES: usize = 2;
    #[inline(always)]
    unsafe fn read(from: *const u8) -> f32 {
        // SAFETY: the caller's pointer is readable for two bytes.
        f32::from_bits(u32::from(unsafe { from.cast::<u16>().read_unaligned() }) << 16)
    }
}

impl Element for F16 {
    const BYTES: usize = 2;
    #[inline(always)]
    unsafe fn read(from: *const u8) -> f32 {
        // SAFETY: the caller's pointer is readable for two bytes.
        half::f16::from_bits(unsafe { from.cast::<u16>().read_unaligned() }).to_f32()
    }
}

impl Element for F32 {
    const BYTES: usize = 4;
    #[inline(always)]
    unsafe fn read(from: *const u8) -> f32 {
        // SAFETY: the caller's pointer is readable for four bytes.
        unsafe { from.cast::<f32>().read_unaligned() }
    }
}

impl Element for Fp8 {
    const BYTES: usize = 1;
    #[inline(always)]
    unsafe fn read(from: *const u8) -> f32 {
        // SAFETY: the caller's pointer is readable for one byte.
        E4M3_VALUES[usize::from(unsafe { from.read() })]
    }
}

/// Products of rows of `E`, whose blocks have `PARTS` parts.
#[derive(Clone, Copy)]
pub(crate) struct PortableDot<E, const PARTS: usize>(PhantomData<E>);

impl<E: Element, const PARTS: usize> Dot for PortableDot<E, PARTS> {
    type Operand = [f32; WIDTH];
    type Block = [[f32; WIDTH]; PARTS];
    type Unpacked = PortableDot<F32, 2>;
    type Sum = [f32; WIDTH];
    const PARTS: usize = PARTS;
    const OPERAND_BYTES: usize = WIDTH * 4;
    const PLAIN: bool = E::BYTES == 4;

    #[inline(always)]
    unsafe fn unpack(stored: *const u8) -> Self::Block {
        const { assert!(PARTS * WIDTH * E::BYTES == BLOCK_BYTES) };
        let mut block = [[0.0; WIDTH]; PARTS];
        for (part, operand) in block.iter_mut().enumerate() {
            for (lane, value) in operand.iter_mut().enumerate() {
                // SAFETY: the block has PARTS · WIDTH elements.
                *value = unsafe { E::read(stored.add((part * WIDTH + lane) * E::BYTES)) };
            }
        }
        block
    }

    #[inline(always)]
    unsafe fn load(unpacked: *const u8) -> Self::Operand {
        // SAFETY: the caller's pointer is readable for an operand.
        unsafe { unpacked.cast::<Self::Operand>().read_unaligned() }
    }

    #[inline(always)]
    unsafe fn store(unpacked: *mut u8, operand: Self::Operand) {
        // SAFETY: the caller's pointer is writable for an operand.
        unsafe { unpacked.cast::<Self::Operand>().write_unaligned(operand) };
    }

    #[inline(always)]
    unsafe fn zero() -> Self::Sum {
        [0.0; WIDTH]
    }

    #[inline(always)]
    unsafe fn multiply_add(mut sum: Self::Sum, x: Self::Operand, w: Self::Operand) -> Self::Sum {
        for lane in 0..WIDTH {
            sum[lane] += x[lane] * w[lane];
        }
        sum
    }

    #[inline(always)]
    unsafe fn reduce(sums: [Self::Sum; 4]) -> [f32; 4] {
        let mut totals = [0.0; 4];
        for (total, s) in totals.iter_mut().zip(sums) {
            *total = ((s[0] + s[4]) + (s[2] + s[6])) + ((s[1] + s[5]) + (s[3] + s[7]));
        }
        totals
    }
}

impl Simd for Portable {
    const TILE_ROWS: usize = 2;
    type Bf16 = PortableDot<Bf16, 4>;
    type F16 = PortableDot<F16, 4>;
    type F32 = PortableDot<F32, 2>;
    type Fp8 = PortableDot<Fp8, 8>;

    #[inline(always)]
    unsafe fn call<T: Task>(task: T) -> T::Output {
        crate::isa::run_portable(task)
    }

    type Lanes = [f32; LANES];

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self::Lanes {
        [value; LANES]
    }

    #[inline(always)]
    unsafe fn load_f32(from: *const f32) -> Self::Lanes {
        // SAFETY: the caller's pointer is readable for LANES numbers.
        unsafe { from.cast::<Self::Lanes>().read_unaligned() }
    }

    #[inline(always)]
    unsafe fn load_bf16(from: *const u16) -> Self::Lanes {
        // SAFETY: the caller's pointer is readable for LANES numbers.
        let codes = unsafe { from.cast::<[u16; LANES]>().read_unaligned() };
        codes.map(|code| f32::from_bits(u32::from(code) << 16))
    }

    #[inline(always)]
    unsafe fn load_f16(from: *const u16) -> Self::Lanes {
        // SAFETY: the caller's pointer is readable for LANES numbers.
        let codes = unsafe { from.cast::<[u16; LANES]>().read_unaligned() };
        codes.map(|code| half::f16::from_bits(code).to_f32())
    }

    #[inline(always)]
    unsafe fn store_f32(to: *mut f32, value: Self::Lanes) {
        // SAFETY: the caller's pointer is writable for LANES numbers.
        unsafe { to.cast::<Self::Lanes>().write_unaligned(value) };
    }

    #[inline(always)]
    unsafe fn store_f16(to: *mut u16, value: Self::Lanes) {
        let codes = value.map(|value| half::f16::from_f32(value).to_bits());
        // SAFETY: the caller's pointer is writable for LANES numbers.
        unsafe { to.cast::<[u16; LANES]>().write_unaligned(codes) };
    }

    #[inline(always)]
    unsafe fn multiply_add(mut sum: Self::Lanes, a: Self::Lanes, b: Self::Lanes) -> Self::Lanes {
        for lane in 0..LANES {
            sum[lane] += a[lane] * b[lane];
        }
        sum
    }

    #[inline(always)]
    unsafe fn prefetch(_address: *const u8) {}
}
