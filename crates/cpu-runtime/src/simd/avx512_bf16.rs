//! The path for x86-64 with AVX-512 BF16 and VBMI: products of bfloat16 pairs are summed by `vdpbf16ps`, and E4M3 is
//! widened to bfloat16 (exactly) by byte tables. Other types are as on the AVX-512 path.

use super::avx512::{Avx512F16, Avx512F32, avx512_lanes, reduce};
use super::{Dot, E4M3_VALUES, Simd};
use crate::isa::Task;
use std::arch::x86_64::*;

/// The AVX-512 BF16 path.
#[derive(Clone, Copy)]
pub(crate) struct Avx512Bf16;

/// The low and high bytes of the bfloat16 numbers that equal the codes 0x00 to 0x7f.
#[repr(align(64))]
struct Tables {
    low: [u8; 128],
    high: [u8; 128],
}

static TABLES: Tables = {
    let mut tables = Tables { low: [0; 128], high: [0; 128] };
    let mut code = 0;
    while code < 128 {
        let bits = E4M3_VALUES[code].to_bits() >> 16;
        tables.low[code] = (bits & 0xff) as u8;
        tables.high[code] = (bits >> 8) as u8;
        code += 1;
    }
    tables
};

/// The low and the high bytes of the bfloat16 numbers that equal 64 E4M3 codes.
#[inline(always)]
unsafe fn bytes_of(codes: __m512i) -> [__m512i; 2] {
    let (low, high) = (TABLES.low.as_ptr(), TABLES.high.as_ptr());
    // SAFETY: the caller has the features; the tables are aligned to their 64 bytes.
    unsafe {
        let low = _mm512_permutex2var_epi8(_mm512_load_si512(low.cast()), codes, _mm512_load_si512(low.add(64).cast()));
        let high =
            _mm512_permutex2var_epi8(_mm512_load_si512(high.cast()), codes, _mm512_load_si512(high.add(64).cast()));
        // high | (codes & 0x80): the permutation looks at seven bits, the eighth is the sign.
        [low, _mm512_ternarylogic_epi32::<0xf8>(high, codes, _mm512_set1_epi8(-128))]
    }
}

/// The bfloat16 numbers that equal 64 E4M3 codes, in their order.
#[inline(always)]
pub(crate) unsafe fn widen_e4m3_block(codes: __m512i) -> [__m512i; 2] {
    // SAFETY: the caller has the features.
    unsafe {
        // Unpacking takes the even eights of bytes, then the odd ones.
        let codes = _mm512_permutexvar_epi64(_mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3, 7), codes);
        let [low, high] = bytes_of(codes);
        [_mm512_unpacklo_epi8(low, high), _mm512_unpackhi_epi8(low, high)]
    }
}

/// The bfloat16 numbers that equal 32 E4M3 codes, in their order.
#[inline(always)]
pub(crate) unsafe fn widen_e4m3_half(codes: __m256i) -> __m512i {
    // SAFETY: the caller has the features.
    unsafe {
        let eights = _mm512_setr_epi64(0, 0, 1, 1, 2, 2, 3, 3);
        let [low, high] = bytes_of(_mm512_permutexvar_epi64(eights, _mm512_castsi256_si512(codes)));
        _mm512_unpacklo_epi8(low, high)
    }
}

macro_rules! bf16_dot {
    ($(#[$doc:meta])* $name:ident, $parts:literal, $plain:literal, |$stored:ident| $unpack:expr) => {
        $(#[$doc])*
        #[derive(Clone, Copy)]
        pub(crate) struct $name;

        impl Dot for $name {
            type Operand = __m512i;
            type Block = [__m512i; $parts];
            type Unpacked = Bf16Pairs;
            type Sum = __m512;
            const PARTS: usize = $parts;
            const OPERAND_BYTES: usize = 64;
            const PLAIN: bool = $plain;

            #[inline(always)]
            unsafe fn unpack($stored: *const u8) -> Self::Block {
                // SAFETY: the caller has the features, and BLOCK_BYTES bytes are readable.
                unsafe { $unpack }
            }
            #[inline(always)]
            unsafe fn load(unpacked: *const u8) -> __m512i {
                // SAFETY: the caller has the features and a readable operand.
                unsafe { _mm512_loadu_si512(unpacked.cast()) }
            }
            #[inline(always)]
            unsafe fn store(unpacked: *mut u8, operand: __m512i) {
                // SAFETY: the caller has the features and room for an operand.
                unsafe { _mm512_storeu_si512(unpacked.cast(), operand) }
            }
            #[inline(always)]
            unsafe fn zero() -> __m512 {
                // SAFETY: the caller has the features.
                unsafe { _mm512_setzero_ps() }
            }
            #[inline(always)]
            unsafe fn multiply_add(sum: __m512, x: __m512i, w: __m512i) -> __m512 {
                // SAFETY: the caller has the features; the two vector types are the same 64 bytes.
                unsafe {
                    _mm512_dpbf16_ps(
                        sum,
                        std::mem::transmute::<__m512i, __m512bh>(x),
                        std::mem::transmute::<__m512i, __m512bh>(w),
                    )
                }
            }
            #[inline(always)]
            unsafe fn reduce(sums: [__m512; 4]) -> [f32; 4] {
                // SAFETY: the caller has the features.
                unsafe { reduce(sums) }
            }
        }
    };
}

bf16_dot!(
    /// Products of bfloat16 rows.
    Bf16Pairs, 1, true, |stored| [_mm512_loadu_si512(stored.cast())]
);
bf16_dot!(
    /// Products of E4M3 rows. In each 16 bytes of a block, part 0 has elements 0 to 7 and part 1 elements 8 to 15.
    Fp8Tables, 2, false, |stored| {
        let [low, high] = bytes_of(_mm512_loadu_si512(stored.cast()));
        [_mm512_unpacklo_epi8(low, high), _mm512_unpackhi_epi8(low, high)]
    }
);

impl Simd for Avx512Bf16 {
    const TILE_ROWS: usize = 6;
    type Bf16 = Bf16Pairs;
    type F16 = Avx512F16;
    type F32 = Avx512F32;
    type Fp8 = Fp8Tables;

    #[inline(always)]
    unsafe fn call<T: Task>(task: T) -> T::Output {
        // SAFETY: the caller has the features.
        unsafe { crate::isa::run_avx512_bf16(task) }
    }

    avx512_lanes!();

    const BF16_PAIRS: bool = true;

    #[inline(always)]
    unsafe fn multiply_add_pairs(sum: __m512, a: __m512, b: __m512) -> __m512 {
        // SAFETY: the caller has the features; the vector types are the same 64 bytes.
        unsafe {
            _mm512_dpbf16_ps(
                sum,
                std::mem::transmute::<__m512, __m512bh>(a),
                std::mem::transmute::<__m512, __m512bh>(b),
            )
        }
    }
}
