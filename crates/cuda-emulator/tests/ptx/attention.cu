// Attention of one token per sequence over a paged cache, a head per block of four warps.
#include "common.cuh"

extern "C" __global__ void __launch_bounds__(128)
attention(float* out, const float* q, const float* keys, const float* values, const int* table, const int* lengths,
          int heads, int most_blocks, int page, float scale) {
    constexpr int WIDTH = 64;
    extern __shared__ float partial[];
    int head = blockIdx.x, sequence = blockIdx.y, warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
    int length = lengths[sequence];
    float2 query = *(const float2*)(q + ((size_t)sequence * heads + head) * WIDTH + lane * 2);
    float most = -INFINITY, sum = 0.f;
    float2 o = make_float2(0.f, 0.f);
    for (int t = warp; t < length; t += 4) {
        int block = table[sequence * most_blocks + t / page];
        size_t at = (((size_t)block * page + t % page) * heads + head) * WIDTH + lane * 2;
        float2 k = *(const float2*)(keys + at), v = *(const float2*)(values + at);
        float score = warp_sum(query.x * k.x + query.y * k.y) * scale, next = fmaxf(most, score);
        float old = __expf(most - next), now = __expf(score - next);
        sum = sum * old + now;
        o.x = o.x * old + now * v.x;
        o.y = o.y * old + now * v.y;
        most = next;
    }
    float* mine = partial + warp * (WIDTH + 2);
    mine[lane * 2] = o.x;
    mine[lane * 2 + 1] = o.y;
    if (lane == 0) { mine[WIDTH] = most; mine[WIDTH + 1] = sum; }
    __syncthreads();
    if (threadIdx.x < WIDTH) {
        float top = -INFINITY, total = 0.f, result = 0.f;
        for (int i = 0; i < 4; i++) top = fmaxf(top, partial[i * (WIDTH + 2) + WIDTH]);
        for (int i = 0; i < 4; i++) {
            const float* other = partial + i * (WIDTH + 2);
            float weight = other[WIDTH] == -INFINITY ? 0.f : __expf(other[WIDTH] - top);
            total += weight * other[WIDTH + 1];
            result += weight * other[threadIdx.x];
        }
        out[((size_t)sequence * heads + head) * WIDTH + threadIdx.x] = result / total;
    }
}
