// Kernels that work row by row.
#include "common.cuh"

union Eight { uint4 bits; __nv_bfloat162 pair[4]; };

extern "C" __global__ void rms_norm(__nv_bfloat16* out, const __nv_bfloat16* x, const __nv_bfloat16* weight, int width, float epsilon) {
    const __nv_bfloat16* row = x + (size_t)blockIdx.x * width;
    float sum = 0.f;
    for (int i = threadIdx.x * 8; i < width; i += blockDim.x * 8) {
        Eight v;
        v.bits = *(const uint4*)(row + i);
#pragma unroll
        for (int j = 0; j < 4; j++) { float2 f = __bfloat1622float2(v.pair[j]); sum += f.x * f.x + f.y * f.y; }
    }
    float scale = rsqrtf(block_reduce<false>(sum) / width + epsilon);
    for (int i = threadIdx.x * 8; i < width; i += blockDim.x * 8) {
        Eight v, w;
        v.bits = *(const uint4*)(row + i);
        w.bits = *(const uint4*)(weight + i);
#pragma unroll
        for (int j = 0; j < 4; j++) {
            float2 f = __bfloat1622float2(v.pair[j]), g = __bfloat1622float2(w.pair[j]);
            v.pair[j] = __floats2bfloat162_rn(f.x * scale * g.x, f.y * scale * g.y);
        }
        *(uint4*)(out + (size_t)blockIdx.x * width + i) = v.bits;
    }
}

extern "C" __global__ void silu_mul(float* out, const float* gate, const float* up, int count) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < count) out[i] = gate[i] / (1.f + __expf(-gate[i])) * up[i];
}

extern "C" __global__ void rope(float* x, const int* positions, int width, float theta) {
    float* row = x + (size_t)blockIdx.x * width;
    int half = width / 2;
    for (int i = threadIdx.x; i < half; i += blockDim.x) {
        float angle = positions[blockIdx.x] * powf(theta, -2.f * i / width), s, c;
        sincosf(angle, &s, &c);
        float a = row[i], b = row[i + half];
        row[i] = a * c - b * s;
        row[i + half] = b * c + a * s;
    }
}

extern "C" __global__ void quantize(__nv_fp8_e4m3* out, float* scales, const float* x, int width) {
    const float* row = x + (size_t)blockIdx.x * width;
    float most = 0.f;
    for (int i = threadIdx.x; i < width; i += blockDim.x) most = fmaxf(most, fabsf(row[i]));
    float scale = fmaxf(block_reduce<true>(most), 1e-6f) / 448.f;
    if (threadIdx.x == 0) scales[blockIdx.x] = scale;
    for (int i = threadIdx.x; i < width; i += blockDim.x) out[(size_t)blockIdx.x * width + i] = __nv_fp8_e4m3(row[i] / scale);
}
