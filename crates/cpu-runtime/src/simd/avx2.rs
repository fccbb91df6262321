//! The path for x86-64 with AVX2, FMA and F16C: eight single-precision lanes, fused multiply-add.

use super::{BLOCK_BYTES, Dot, Simd};
use crate::isa::Task;
use std::arch::x86_64::*;

/// The AVX2 path.
#[derive(Clone, Copy)]
pub(crate) struct Avx2;

/// Sums four vectors: lanes i and i+4, then neighbours, then the two halves that are left.
#[inline(always)]
unsafe fn reduce(sums: [__m256; 4]) -> [f32; 4] {
    // SAFETY: the caller has AVX2.
    unsafe {
        let [a, b, c, d] = sums;
        let ab = _mm256_add_ps(_mm256_permute2f128_ps(a, b, 0x20), _mm256_permute2f128_ps(a, b, 0x31));
        let cd = _mm256_add_ps(_mm256_permute2f128_ps(c, d, 0x20), _mm256_permute2f128_ps(c, d, 0x31));
        let pairs = _mm256_hadd_ps(ab, cd);
        let totals = _mm256_hadd_ps(pairs, pairs);
        let mut lanes = [0.0f32; 8];
        _mm256_storeu_ps(lanes.as_mut_ptr(), totals);
        [lanes[0], lanes[4], lanes[1], lanes[5]]
    }
}

/// Eight E4M3 codes as single precision: moved into half precision's fields they are 2^-8 of their value (subnormals
/// included, which the conversion normalizes); the NaN code gets half precision's.
#[inline(always)]
unsafe fn widen_e4m3(codes: __m128i) -> __m256 {
    // SAFETY: the caller has AVX2 and F16C.
    unsafe {
        let codes = _mm_cvtepu8_epi16(codes);
        let magnitude = _mm_and_si128(codes, _mm_set1_epi16(0x7f));
        let sign = _mm_slli_epi16(_mm_andnot_si128(_mm_set1_epi16(0x7f), codes), 8);
        let nan = _mm_and_si128(_mm_cmpeq_epi16(magnitude, _mm_set1_epi16(0x7f)), _mm_set1_epi16(0x7e00));
        let half = _mm_or_si128(_mm_or_si128(_mm_slli_epi16(magnitude, 7), sign), nan);
        _mm256_mul_ps(_mm256_cvtph_ps(half), _mm256_set1_ps(256.0))
    }
}

macro_rules! avx2_dot {
    ($(#[$doc:meta])* $name:ident, $parts:literal, $plain:literal, |$stored:ident| $unpack:expr) => {
        $(#[$doc])*
        #[derive(Clone, Copy)]
        pub(crate) struct $name;

        impl Dot for $name {
            type Operand = __m256;
            type Block = [__m256; $parts];
            type Unpacked = Avx2F32;
            type Sum = __m256;
            const PARTS: usize = $parts;
            const OPERAND_BYTES: usize = 32;
            const PLAIN: bool = $plain;

            #[inline(always)]
            unsafe fn unpack($stored: *const u8) -> Self::Block {
                // SAFETY: the caller has the features, and BLOCK_BYTES bytes are readable.
                unsafe { $unpack }
            }
            #[inline(always)]
            unsafe fn load(unpacked: *const u8) -> __m256 {
                // SAFETY: the caller has the features and a readable operand.
                unsafe { _mm256_loadu_ps(unpacked.cast()) }
            }
            #[inline(always)]
            unsafe fn store(unpacked: *mut u8, operand: __m256) {
                // SAFETY: the caller has the features and room for an operand.
                unsafe { _mm256_storeu_ps(unpacked.cast(), operand) }
            }
            #[inline(always)]
            unsafe fn zero() -> __m256 {
                // SAFETY: the caller has the features.
                unsafe { _mm256_setzero_ps() }
            }
            #[inline(always)]
            unsafe fn multiply_add(sum: __m256, x: __m256, w: __m256) -> __m256 {
                // SAFETY: the caller has the features.
                unsafe { _mm256_fmadd_ps(x, w, sum) }
            }
            #[inline(always)]
            unsafe fn reduce(sums: [__m256; 4]) -> [f32; 4] {
                // SAFETY: the caller has the features.
                unsafe { reduce(sums) }
            }
        }
    };
}

/// Sixteen bfloat16 numbers as the eight at even and the eight at odd places.
#[inline(always)]
unsafe fn even_odd(stored: *const u8) -> (__m256, __m256) {
    // SAFETY: the caller has AVX2 and 32 readable bytes.
    unsafe {
        let pairs = _mm256_loadu_si256(stored.cast());
        (
            _mm256_castsi256_ps(_mm256_slli_epi32(pairs, 16)),
            _mm256_castsi256_ps(_mm256_and_si256(pairs, _mm256_set1_epi32(!0xffff))),
        )
    }
}

avx2_dot!(
    /// Products of bfloat16 rows.
    Avx2Bf16, 4, false, |stored| {
        let (a, b) = even_odd(stored);
        let (c, d) = even_odd(stored.add(32));
        [a, b, c, d]
    }
);
avx2_dot!(
    /// Products of half-precision rows.
    Avx2F16, 4, false, |stored| {
        let mut block = [_mm256_setzero_ps(); 4];
        for (part, operand) in block.iter_mut().enumerate() {
            *operand = _mm256_cvtph_ps(_mm_loadu_si128(stored.add(part * 16).cast()));
        }
        block
    }
);
avx2_dot!(
    /// Products of single-precision rows.
    Avx2F32, 2, true, |stored| {
        [_mm256_loadu_ps(stored.cast()), _mm256_loadu_ps(stored.add(32).cast())]
    }
);
avx2_dot!(
    /// Products of E4M3 rows.
    Avx2Fp8, 8, false, |stored| {
        let mut block = [_mm256_setzero_ps(); 8];
        for (part, operand) in block.iter_mut().enumerate() {
            *operand = widen_e4m3(_mm_loadl_epi64(stored.add(part * 8).cast()));
        }
        block
    }
);

/// Eight bfloat16 numbers in order.
#[inline(always)]
unsafe fn widen_bf16(codes: __m128i) -> __m256 {
    // SAFETY: the caller has AVX2.
    unsafe { _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(codes), 16)) }
}

const _: () = assert!(BLOCK_BYTES == 64);

impl Simd for Avx2 {
    const TILE_ROWS: usize = 3;
    type Bf16 = Avx2Bf16;
    type F16 = Avx2F16;
    type F32 = Avx2F32;
    type Fp8 = Avx2Fp8;

    #[inline(always)]
    unsafe fn call<T: Task>(task: T) -> T::Output {
        // SAFETY: the caller has the features.
        unsafe { crate::isa::run_avx2(task) }
    }

    type Lanes = [__m256; 2];

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self::Lanes {
        // SAFETY: the caller has the features.
        unsafe { [_mm256_set1_ps(value); 2] }
    }

    #[inline(always)]
    unsafe fn load_f32(from: *const f32) -> Self::Lanes {
        // SAFETY: the caller has the features and LANES readable numbers.
        unsafe { [_mm256_loadu_ps(from), _mm256_loadu_ps(from.add(8))] }
    }

    #[inline(always)]
    unsafe fn load_bf16(from: *const u16) -> Self::Lanes {
        // SAFETY: the caller has the features and LANES readable numbers.
        unsafe { [widen_bf16(_mm_loadu_si128(from.cast())), widen_bf16(_mm_loadu_si128(from.add(8).cast()))] }
    }

    #[inline(always)]
    unsafe fn load_f16(from: *const u16) -> Self::Lanes {
        // SAFETY: the caller has the features and LANES readable numbers.
        unsafe { [_mm256_cvtph_ps(_mm_loadu_si128(from.cast())), _mm256_cvtph_ps(_mm_loadu_si128(from.add(8).cast()))] }
    }

    #[inline(always)]
    unsafe fn store_f32(to: *mut f32, value: Self::Lanes) {
        // SAFETY: the caller has the features and room for LANES numbers.
        unsafe {
            _mm256_storeu_ps(to, value[0]);
            _mm256_storeu_ps(to.add(8), value[1]);
        }
    }

    #[inline(always)]
    unsafe fn store_f16(to: *mut u16, value: Self::Lanes) {
        // SAFETY: the caller has the features and room for LANES numbers.
        unsafe {
            _mm_storeu_si128(to.cast(), _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(value[0]));
            _mm_storeu_si128(to.add(8).cast(), _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(value[1]));
        }
    }

    #[inline(always)]
    unsafe fn multiply_add(sum: Self::Lanes, a: Self::Lanes, b: Self::Lanes) -> Self::Lanes {
        // SAFETY: the caller has the features.
        unsafe { [_mm256_fmadd_ps(a[0], b[0], sum[0]), _mm256_fmadd_ps(a[1], b[1], sum[1])] }
    }

    #[inline(always)]
    unsafe fn prefetch(address: *const u8) {
        // SAFETY: a prefetch of any address is harmless.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(address.cast()) };
    }
}
