// Elements, vector loads and stores, and what every kernel begins with.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <stddef.h>
#include <stdint.h>

#include "float8.cuh"

using bf16 = __nv_bfloat16;
using f16 = __half;

constexpr uint32_t THREADS = 128;
constexpr uint32_t WARPS = THREADS / 32;
constexpr uint32_t ALL_LANES = 0xffffffffu;

// Codes of output types in parameters.
enum OutputType : uint32_t { OUTPUT_F32 = 0, OUTPUT_F16 = 1, OUTPUT_BF16 = 2, OUTPUT_E4M3 = 3 };

// The live sizes of a step.
enum Size : uint32_t { TOKENS = 0, SEQUENCES = 1, LOGIT_ROWS = 2, TABLE_BLOCKS = 3 };

// Where the hardware has programmatic launches: waits for what the launches before wrote, the live sizes too, and lets
// the next launch come. Nothing of global memory may be read before.
__device__ __forceinline__ void begin() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

__device__ __forceinline__ uint32_t shared_address(const void* pointer) {
    return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

__device__ __forceinline__ float to_float(float value) { return value; }
__device__ __forceinline__ float to_float(f16 value) { return __half2float(value); }
__device__ __forceinline__ float to_float(bf16 value) { return __bfloat162float(value); }
__device__ __forceinline__ float to_float(e4m3 value) { return e4m3_to_float(value); }

// Eight neighbouring elements in registers, as they are stored: eight words of f32, four of 16-bit types, two of e4m3.
template <typename Element>
union Eight {
    static constexpr uint32_t WORDS = 8 * sizeof(Element) / 4;
    uint32_t word[WORDS];
    Element element[8];
    __device__ __forceinline__ Eight() {}
};

// Loads eight elements at an address that is a multiple of 16 bytes, or of 8 for e4m3.
template <typename Element>
__device__ __forceinline__ Eight<Element> load_eight(const Element* source) {
    Eight<Element> eight;
    if constexpr (sizeof(Element) == 1) {
        uint2 pair = *reinterpret_cast<const uint2*>(source);
        eight.word[0] = pair.x, eight.word[1] = pair.y;
    } else {
#pragma unroll
        for (uint32_t i = 0; i < Eight<Element>::WORDS; i += 4) {
            uint4 four = reinterpret_cast<const uint4*>(source)[i / 4];
            eight.word[i] = four.x, eight.word[i + 1] = four.y, eight.word[i + 2] = four.z, eight.word[i + 3] = four.w;
        }
    }
    return eight;
}

// Rounds to the output type, to nearest even, and stores element `index`.
__device__ __forceinline__ void store_rounded(void* output, uint32_t type, size_t index, float value) {
    switch (type) {
        case OUTPUT_F32: static_cast<float*>(output)[index] = value; break;
        case OUTPUT_F16: static_cast<f16*>(output)[index] = __float2half_rn(value); break;
        case OUTPUT_BF16: static_cast<bf16*>(output)[index] = __float2bfloat16_rn(value); break;
        default: static_cast<e4m3*>(output)[index] = float_to_e4m3(value); break;
    }
}

__device__ __forceinline__ float warp_sum(float value) {
#pragma unroll
    for (uint32_t step = 16; step > 0; step /= 2) value = __fadd_rn(value, __shfl_xor_sync(ALL_LANES, value, step));
    return value;
}

__device__ __forceinline__ float warp_maximum(float value) {
#pragma unroll
    for (uint32_t step = 16; step > 0; step /= 2) value = fmaxf(value, __shfl_xor_sync(ALL_LANES, value, step));
    return value;
}
