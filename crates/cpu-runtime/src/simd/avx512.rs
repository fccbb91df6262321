//! The path for x86-64 with AVX-512 F, BW, DQ and VL: sixteen single-precision lanes, fused multiply-add.

use super::{Dot, Simd};
use crate::isa::Task;
use std::arch::x86_64::*;

/// The AVX-512 path.
#[derive(Clone, Copy)]
pub(crate) struct Avx512;

/// The lower plus the upper half of `a`, then of `b`.
#[inline(always)]
unsafe fn add_halves(a: __m512, b: __m512) -> __m512 {
    // SAFETY: the caller has AVX-512 F.
    unsafe { _mm512_add_ps(_mm512_shuffle_f32x4::<0b01_00_01_00>(a, b), _mm512_shuffle_f32x4::<0b11_10_11_10>(a, b)) }
}

/// Sums four vectors: lanes i and i+8, then i and i+4, i and i+2, i and i+1, all four vectors at a time.
#[inline(always)]
pub(super) unsafe fn reduce(sums: [__m512; 4]) -> [f32; 4] {
    // SAFETY: the caller has AVX-512 F.
    unsafe {
        let [a, b, c, d] = sums;
        let (ab, cd) = (add_halves(a, b), add_halves(c, d));
        let quarters =
            _mm512_add_ps(_mm512_shuffle_f32x4::<0b10_00_10_00>(ab, cd), _mm512_shuffle_f32x4::<0b11_01_11_01>(ab, cd));
        let pairs = _mm512_add_ps(quarters, _mm512_permute_ps::<0b01_00_11_10>(quarters));
        let totals = _mm512_add_ps(pairs, _mm512_permute_ps::<0b10_11_00_01>(pairs));
        let mut lanes = [0.0f32; 16];
        _mm512_storeu_ps(lanes.as_mut_ptr(), totals);
        [lanes[0], lanes[4], lanes[8], lanes[12]]
    }
}

/// Sixteen E4M3 codes as single precision: moved into half precision's fields they are 2^-8 of their value (subnormals
/// included, which the conversion normalizes); the NaN code gets half precision's.
#[inline(always)]
pub(super) unsafe fn widen_e4m3(codes: __m128i) -> __m512 {
    // SAFETY: the caller has AVX-512 F, BW and VL.
    unsafe {
        let codes = _mm256_cvtepu8_epi16(codes);
        let magnitude = _mm256_and_si256(codes, _mm256_set1_epi16(0x7f));
        let sign = _mm256_slli_epi16(_mm256_andnot_si256(_mm256_set1_epi16(0x7f), codes), 8);
        let nan = _mm256_cmpeq_epi16_mask(magnitude, _mm256_set1_epi16(0x7f));
        let half = _mm256_or_si256(_mm256_slli_epi16(magnitude, 7), sign);
        let half = _mm256_mask_blend_epi16(nan, half, _mm256_set1_epi16(0x7e00));
        _mm512_mul_ps(_mm512_cvtph_ps(half), _mm512_set1_ps(256.0))
    }
}

macro_rules! avx512_dot {
    ($(#[$doc:meta])* $name:ident, $parts:literal, $plain:literal, |$stored:ident| $unpack:expr) => {
        $(#[$doc])*
        #[derive(Clone, Copy)]
        pub(crate) struct $name;

        impl Dot for $name {
            type Operand = __m512;
            type Block = [__m512; $parts];
            type Unpacked = Avx512F32;
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
            unsafe fn load(unpacked: *const u8) -> __m512 {
                // SAFETY: the caller has the features and a readable operand.
                unsafe { _mm512_loadu_ps(unpacked.cast()) }
            }
            #[inline(always)]
            unsafe fn store(unpacked: *mut u8, operand: __m512) {
                // SAFETY: the caller has the features and room for an operand.
                unsafe { _mm512_storeu_ps(unpacked.cast(), operand) }
            }
            #[inline(always)]
            unsafe fn zero() -> __m512 {
                // SAFETY: the caller has the features.
                unsafe { _mm512_setzero_ps() }
            }
            #[inline(always)]
            unsafe fn multiply_add(sum: __m512, x: __m512, w: __m512) -> __m512 {
                // SAFETY: the caller has the features.
                unsafe { _mm512_fmadd_ps(x, w, sum) }
            }
            #[inline(always)]
            unsafe fn reduce(sums: [__m512; 4]) -> [f32; 4] {
                // SAFETY: the caller has the features.
                unsafe { reduce(sums) }
            }
        }
    };
}

avx512_dot!(
    /// Products of bfloat16 rows: a block is its even and its odd elements.
    Avx512Bf16Widened, 2, false, |stored| {
        let pairs = _mm512_loadu_si512(stored.cast());
        [
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(pairs)),
            _mm512_castsi512_ps(_mm512_and_si512(pairs, _mm512_set1_epi32(!0xffff))),
        ]
    }
);
avx512_dot!(
    /// Products of half-precision rows.
    Avx512F16, 2, false, |stored| {
        [
            _mm512_cvtph_ps(_mm256_loadu_si256(stored.cast())),
            _mm512_cvtph_ps(_mm256_loadu_si256(stored.add(32).cast())),
        ]
    }
);
avx512_dot!(
    /// Products of single-precision rows.
    Avx512F32, 1, true, |stored| [_mm512_loadu_ps(stored.cast())]
);
avx512_dot!(
    /// Products of E4M3 rows.
    Avx512Fp8, 4, false, |stored| {
        [
            widen_e4m3(_mm_loadu_si128(stored.cast())),
            widen_e4m3(_mm_loadu_si128(stored.add(16).cast())),
            widen_e4m3(_mm_loadu_si128(stored.add(32).cast())),
            widen_e4m3(_mm_loadu_si128(stored.add(48).cast())),
        ]
    }
);

/// The members of [`Simd`] that the two AVX-512 paths share.
macro_rules! avx512_lanes {
    () => {
        type Lanes = __m512;

        #[inline(always)]
        unsafe fn splat(value: f32) -> __m512 {
            // SAFETY: the caller has the features.
            unsafe { _mm512_set1_ps(value) }
        }
        #[inline(always)]
        unsafe fn load_f32(from: *const f32) -> __m512 {
            // SAFETY: the caller has the features and LANES readable numbers.
            unsafe { _mm512_loadu_ps(from) }
        }
        #[inline(always)]
        unsafe fn load_bf16(from: *const u16) -> __m512 {
            // SAFETY: the caller has the features and LANES readable numbers.
            unsafe {
                let codes = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.cast()));
                _mm512_castsi512_ps(_mm512_slli_epi32::<16>(codes))
            }
        }
        #[inline(always)]
        unsafe fn load_f16(from: *const u16) -> __m512 {
            // SAFETY: the caller has the features and LANES readable numbers.
            unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(from.cast())) }
        }
        #[inline(always)]
        unsafe fn store_f32(to: *mut f32, value: __m512) {
            // SAFETY: the caller has the features and room for LANES numbers.
            unsafe { _mm512_storeu_ps(to, value) }
        }
        #[inline(always)]
        unsafe fn store_f16(to: *mut u16, value: __m512) {
            // SAFETY: the caller has the features and room for LANES numbers.
            unsafe {
                let half = _mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(value);
                _mm256_storeu_si256(to.cast(), half);
            }
        }
        #[inline(always)]
        unsafe fn multiply_add(sum: __m512, a: __m512, b: __m512) -> __m512 {
            // SAFETY: the caller has the features.
            unsafe { _mm512_fmadd_ps(a, b, sum) }
        }
        #[inline(always)]
        unsafe fn prefetch(address: *const u8) {
            // SAFETY: a prefetch of any address is harmless.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(address.cast()) };
        }
        #[inline(always)]
        unsafe fn load_pairs_bf16(from: *const u8) -> [__m512; 2] {
            // SAFETY: the caller has the features and LANES readable pairs.
            unsafe {
                let pairs = _mm512_loadu_si512(from.cast());
                let second = _mm512_and_si512(pairs, _mm512_set1_epi32(!0xffff));
                [_mm512_castsi512_ps(_mm512_slli_epi32::<16>(pairs)), _mm512_castsi512_ps(second)]
            }
        }
        #[inline(always)]
        unsafe fn load_pairs_f16(from: *const u8) -> [__m512; 2] {
            // SAFETY: the caller has the features and LANES readable pairs.
            unsafe {
                let pairs = _mm512_loadu_si512(from.cast());
                let second = _mm512_srli_epi32::<16>(pairs);
                [pairs, second].map(|codes| _mm512_cvtph_ps(_mm512_cvtepi32_epi16(codes)))
            }
        }
        #[inline(always)]
        unsafe fn load_pairs_e4m3(from: *const u8) -> [__m512; 2] {
            // SAFETY: the caller has the features and LANES readable pairs.
            unsafe {
                let pairs = _mm256_loadu_si256(from.cast());
                let second = _mm256_srli_epi16::<8>(pairs);
                [pairs, second].map(|codes| $crate::simd::avx512::widen_e4m3(_mm256_cvtepi16_epi8(codes)))
            }
        }
        #[inline(always)]
        unsafe fn add(a: __m512, b: __m512) -> __m512 {
            // SAFETY: the caller has the features.
            unsafe { _mm512_add_ps(a, b) }
        }
        #[inline(always)]
        unsafe fn multiply(a: __m512, b: __m512) -> __m512 {
            // SAFETY: the caller has the features.
            unsafe { _mm512_mul_ps(a, b) }
        }
        #[inline(always)]
        unsafe fn larger(a: __m512, b: __m512) -> __m512 {
            // SAFETY: the caller has the features. The instruction gives its second operand if either is NaN.
            unsafe { _mm512_max_ps(a, b) }
        }
        #[inline(always)]
        unsafe fn first_lanes(count: usize, a: __m512, b: __m512) -> __m512 {
            // SAFETY: the caller has the features.
            unsafe { _mm512_mask_mov_ps(b, ((1u32 << count) - 1) as u16, a) }
        }
        #[inline(always)]
        unsafe fn largest_lane(a: __m512) -> __m512 {
            // SAFETY: the caller has the features.
            unsafe {
                let a = _mm512_max_ps(a, _mm512_shuffle_f32x4::<0b01_00_11_10>(a, a));
                let a = _mm512_max_ps(a, _mm512_shuffle_f32x4::<0b10_11_00_01>(a, a));
                let a = _mm512_max_ps(a, _mm512_permute_ps::<0b01_00_11_10>(a));
                _mm512_max_ps(a, _mm512_permute_ps::<0b10_11_00_01>(a))
            }
        }
        #[inline(always)]
        unsafe fn exp2(x: __m512) -> __m512 {
            use $crate::simd::{EXP2, LEAST_EXPONENT};
            // SAFETY: the caller has the features.
            unsafe {
                let n = _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(x);
                let r = _mm512_sub_ps(x, n);
                let mut p = _mm512_set1_ps(EXP2[5]);
                for factor in [EXP2[4], EXP2[3], EXP2[2], EXP2[1], EXP2[0], 1.0] {
                    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(factor));
                }
                // All others get zero, but NaN.
                let normal = _mm512_cmp_ps_mask::<_CMP_NLT_UQ>(x, _mm512_set1_ps(LEAST_EXPONENT));
                _mm512_maskz_scalef_ps(normal, p, n)
            }
        }
    };
}
pub(super) use avx512_lanes;

impl Simd for Avx512 {
    const TILE_ROWS: usize = 6;
    type Bf16 = Avx512Bf16Widened;
    type F16 = Avx512F16;
    type F32 = Avx512F32;
    type Fp8 = Avx512Fp8;

    #[inline(always)]
    unsafe fn call<T: Task>(task: T) -> T::Output {
        // SAFETY: the caller has the features.
        unsafe { crate::isa::run_avx512(task) }
    }

    avx512_lanes!();
}
