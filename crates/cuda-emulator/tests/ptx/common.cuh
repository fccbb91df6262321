// Shared pieces of the kernels that test the emulator.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp8.h>
#include <stdint.h>

__device__ __forceinline__ float warp_sum(float value) {
#pragma unroll
    for (int step = 16; step > 0; step >>= 1) value += __shfl_xor_sync(0xffffffffu, value, step);
    return value;
}

__device__ __forceinline__ float warp_max(float value) {
#pragma unroll
    for (int step = 16; step > 0; step >>= 1) value = fmaxf(value, __shfl_xor_sync(0xffffffffu, value, step));
    return value;
}

// The sum or maximum over a block; all threads get it.
template <bool MAXIMUM>
__device__ __forceinline__ float block_reduce(float value) {
    __shared__ float partial[32];
    int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, warps = blockDim.x >> 5;
    value = MAXIMUM ? warp_max(value) : warp_sum(value);
    if (lane == 0) partial[warp] = value;
    __syncthreads();
    value = lane < warps ? partial[lane] : (MAXIMUM ? -INFINITY : 0.f);
    return MAXIMUM ? warp_max(value) : warp_sum(value);
}
