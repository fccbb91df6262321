// A grid that waits for itself, and the last block that adds up what all others have left.
#include "common.cuh"
#include <cooperative_groups.h>

extern "C" __global__ void normalize(float* x, float* total, int count) {
    cooperative_groups::grid_group grid = cooperative_groups::this_grid();
    float sum = 0.f;
    for (int i = grid.thread_rank(); i < count; i += grid.size()) sum += x[i] * x[i];
    sum = warp_sum(sum);
    if ((threadIdx.x & 31) == 0) atomicAdd(total, sum);
    grid.sync();
    float scale = rsqrtf(*(volatile float*)total / count);
    for (int i = grid.thread_rank(); i < count; i += grid.size()) x[i] *= scale;
}

extern "C" __global__ void histogram(unsigned* out, const unsigned* keys, int count) {
    __shared__ unsigned bins[64];
    for (int i = threadIdx.x; i < 64; i += blockDim.x) bins[i] = 0;
    __syncthreads();
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < count; i += gridDim.x * blockDim.x) atomicAdd(&bins[keys[i] & 63], 1u);
    __syncthreads();
    for (int i = threadIdx.x; i < 64; i += blockDim.x) atomicAdd(&out[i], bins[i]);
}
