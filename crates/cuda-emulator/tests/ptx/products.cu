// Matrix products.
#include "common.cuh"

// A warp per row.
extern "C" __global__ void gemv(float* y, const __nv_bfloat16* matrix, const __nv_bfloat16* x, int rows, int width) {
    int row = blockIdx.x * (blockDim.x >> 5) + (threadIdx.x >> 5), lane = threadIdx.x & 31;
    if (row >= rows) return;
    float sum = 0.f;
    for (int i = lane * 2; i < width; i += 64) {
        float2 a = __bfloat1622float2(*(const __nv_bfloat162*)(matrix + (size_t)row * width + i));
        float2 b = __bfloat1622float2(*(const __nv_bfloat162*)(x + i));
        sum = fmaf(a.x, b.x, sum);
        sum = fmaf(a.y, b.y, sum);
    }
    sum = warp_sum(sum);
    if (lane == 0) y[row] = sum;
}

__device__ __forceinline__ uint32_t shared(const void* pointer) { return (uint32_t)__cvta_generic_to_shared(pointer); }

__device__ __forceinline__ void copy16(uint32_t to, const void* from) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(from) : "memory");
}

__device__ __forceinline__ void matrices(uint32_t (&r)[4], uint32_t from) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(from) : "memory");
}

__device__ __forceinline__ void multiply(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// C = A Bᵀ with tiles of 32×32, two stages deep in k, two warps.
extern "C" __global__ void __launch_bounds__(64) gemm(float* c, const __nv_bfloat16* a, const __nv_bfloat16* b, int columns, int depth) {
    __shared__ __align__(16) __nv_bfloat16 left[2][32][40], right[2][32][40];
    int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, row0 = blockIdx.y * 32, column0 = blockIdx.x * 32;
    float sum[4][4] = {};
    auto load = [&](int stage, int k) {
#pragma unroll
        for (int i = 0; i < 2; i++) {
            int piece = threadIdx.x + i * 64, row = piece >> 2, column = (piece & 3) * 8;
            copy16(shared(&left[stage][row][column]), a + (size_t)(row0 + row) * depth + k + column);
            copy16(shared(&right[stage][row][column]), b + (size_t)(column0 + row) * depth + k + column);
        }
        asm volatile("cp.async.commit_group;" ::: "memory");
    };
    int steps = depth / 32;
    load(0, 0);
    for (int step = 0; step < steps; step++) {
        if (step + 1 < steps) {
            load((step + 1) & 1, (step + 1) * 32);
            asm volatile("cp.async.wait_group 1;" ::: "memory");
        } else {
            asm volatile("cp.async.wait_group 0;" ::: "memory");
        }
        __syncthreads();
        int stage = step & 1;
#pragma unroll
        for (int k = 0; k < 32; k += 16) {
            uint32_t x[4], y[2][4];
            matrices(x, shared(&left[stage][warp * 16 + (lane & 15)][k + (lane >> 4) * 8]));
#pragma unroll
            for (int i = 0; i < 2; i++)
                matrices(y[i], shared(&right[stage][i * 16 + (lane & 7) + ((lane >> 4) << 3)][k + ((lane >> 3) & 1) * 8]));
#pragma unroll
            for (int j = 0; j < 4; j++) multiply(sum[j], x, y[j >> 1][(j & 1) * 2], y[j >> 1][(j & 1) * 2 + 1]);
        }
        __syncthreads();
    }
#pragma unroll
    for (int j = 0; j < 4; j++) {
        int row = row0 + warp * 16 + (lane >> 2), column = column0 + j * 8 + (lane & 3) * 2;
        *(float2*)(c + (size_t)row * columns + column) = make_float2(sum[j][0], sum[j][1]);
        *(float2*)(c + (size_t)(row + 8) * columns + column) = make_float2(sum[j][2], sum[j][3]);
    }
}
