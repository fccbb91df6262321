// The 8-bit float e4m3 (no infinities, 0x7f and 0xff are NaN): by the hardware from sm_89 on, by integers before.
#pragma once
#include <stdint.h>

struct e4m3 {
    uint8_t bits;
};

// The two numbers in the low 16 bits of `pair` as two f16, which hold them exactly.
__device__ __forceinline__ uint32_t e4m3_pair_to_f16_pair(uint32_t pair) {
    uint32_t result;
#if __CUDA_ARCH__ >= 890
    asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(result) : "h"(static_cast<uint16_t>(pair)));
#else
    uint32_t spread = (pair & 0xff) | (pair & 0xff00) << 8;
    uint32_t magnitude = spread & 0x007f007f;
    uint32_t sign = (spread & 0x00800080) << 8;
    // With the exponent in the low bits of the wider field, a number is 2^-8 of what it should be.
    asm("mul.rn.f16x2 %0, %1, %2;" : "=r"(result) : "r"(sign | magnitude << 7), "r"(0x5c005c00));
    uint32_t nan = (magnitude + 0x00010001) & 0x00800080;
    result |= (nan >> 7) * 0x7fff;
#endif
    return result;
}

__device__ __forceinline__ float e4m3_to_float(e4m3 value) {
    float result;
    uint16_t half = static_cast<uint16_t>(e4m3_pair_to_f16_pair(value.bits));
    asm("cvt.f32.f16 %0, %1;" : "=f"(result) : "h"(half));
    return result;
}

// To nearest even; what is larger than 448 becomes 448, and NaN 0x7f.
__device__ __forceinline__ e4m3 float_to_e4m3(float value) {
#if __CUDA_ARCH__ >= 890
    uint16_t pair;
    asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(pair) : "f"(0.0f), "f"(value));
    return e4m3{static_cast<uint8_t>(pair)};
#else
    uint32_t bits = __float_as_uint(value);
    uint32_t sign = bits >> 24 & 0x80;
    uint32_t magnitude = bits & 0x7fffffff;
    uint32_t result;
    if (magnitude > 0x7f800000) return e4m3{0x7f};
    if (magnitude < 0x3c800000) {
        // Below 2^-6 the steps are 2^-9, which are those of f32 at 2^14.
        result = __float_as_uint(__fadd_rn(__uint_as_float(magnitude), 16384.0f)) - __float_as_uint(16384.0f);
    } else {
        uint32_t bounded = min(magnitude, 0x43e00000u);
        result = (bounded + 0x7ffff + (bounded >> 20 & 1)) >> 20;
        result -= (127 - 7) << 3;
    }
    return e4m3{static_cast<uint8_t>(sign | result)};
#endif
}
