// Causal attention of grouped queries over a paged cache; prefill and decode alike, since a token needs no more than
// its sequence and its position.
//
// Grid: (tokens, kv heads). Token t sees the positions 0..=positions[t] of the sequence whose row of the block tables
// is token_sequences[t]; position -1 is padding, whose result is zero. Position q lies in slot
// block_tables[sequence][q / block_size] * block_size + q % block_size. Queries are [tokens, heads * head_dim], keys
// and values [slots, kv_heads * head_dim]. With head_dim a multiple of 8, keys and values are at multiples of 16 bytes.
//
// The context is walked in tiles of fixed size from position 0 on, so a token's bits depend on its context alone.
//
// Dynamic shared memory, laid out by the host, with group = heads / kv_heads: at offset 0
// 4 * (group * head_dim + 32 * (head_dim | 1) + 35 * group + 32) bytes; the result, f32 [group * head_dim], at
// `tile_offset`; what the slot asks for at `scratch_offset`.
#pragma once
#include "slots.cuh"
#include "types.cuh"

struct AttentionParams {
    const int32_t* sizes;
    const void *queries, *keys, *values;
    const int32_t *positions, *token_sequences, *block_tables;
    void* output;
    uint32_t heads, kv_heads, head_dim, block_size;
    float scale;
    uint32_t tile_offset, scratch_offset, output_type;
    const void* pointers[64];
};
static_assert(sizeof(AttentionParams) == 608, "the host's");

// Positions of the context that are worked on at a time, one for each lane.
constexpr uint32_t CONTEXT = 32;

constexpr float LOG2_E = 1.4426950408889634f;

extern __shared__ __align__(16) unsigned char shared[];

__device__ __forceinline__ float exp2_approximate(float value) {
    float result;
    asm("ex2.approx.f32 %0, %1;" : "=f"(result) : "f"(value));
    return result;
}

struct Plain {
    static __device__ __forceinline__ void epilogue(const AttentionParams& p, uint32_t token, uint32_t column0,
                                                    uint32_t columns) {
        const float* result = reinterpret_cast<const float*>(shared + p.tile_offset);
        size_t first = static_cast<size_t>(token) * p.heads * p.head_dim + column0;
        // Each thread stores what it computed itself.
#pragma unroll 1
        for (uint32_t i = threadIdx.x; i < columns; i += THREADS)
            store_rounded(p.output, p.output_type, first + i, result[i]);
    }
};

struct Slots {
    static __device__ __forceinline__ void epilogue(const AttentionParams& p, uint32_t token, uint32_t column0,
                                                    uint32_t) {
        __syncthreads();
        slot_epilogue(shared_address(shared + p.tile_offset), token, 1, column0, 0,
                      shared_address(shared + p.scratch_offset));
    }
};

// The block's working memory.
struct Workspace {
    // f32 [group, head_dim].
    float* queries;
    // Keys, then values, of the tile: f32 [CONTEXT, head_dim], in lines of odd length, so that a column lies in
    // different banks.
    float* context;
    // f32 [group, CONTEXT].
    float* weights;
    // For each head the largest score so far, the sum of the weights relative to it, and what the last tile made of
    // earlier weights.
    float *maximum, *total, *correction;
    // The slots of the tile.
    uint32_t* slots;
    uint32_t group, line;

    __device__ __forceinline__ Workspace(const AttentionParams& p) {
        group = p.heads / p.kv_heads;
        line = p.head_dim | 1;
        queries = reinterpret_cast<float*>(shared);
        context = queries + group * p.head_dim;
        weights = context + CONTEXT * line;
        maximum = weights + group * CONTEXT;
        total = maximum + group;
        correction = total + group;
        slots = reinterpret_cast<uint32_t*>(correction + group);
    }
};

// Brings the keys or values of the tile's `count` slots to the working memory.
template <typename Element>
__device__ __forceinline__ void bring(const AttentionParams& p, const Workspace& work, const void* cache,
                                      uint32_t count) {
    const Element* source = static_cast<const Element*>(cache) + blockIdx.y * p.head_dim;
    size_t width = static_cast<size_t>(p.kv_heads) * p.head_dim;
    if (p.head_dim % 8 == 0) {
        uint32_t eights = p.head_dim / 8;
#pragma unroll 1
        for (uint32_t i = threadIdx.x; i < count * eights; i += THREADS) {
            uint32_t line = i / eights, at = i % eights * 8;
            Eight<Element> x = load_eight(source + work.slots[line] * width + at);
#pragma unroll
            for (uint32_t j = 0; j < 8; ++j) work.context[line * work.line + at + j] = to_float(x.element[j]);
        }
    } else {
#pragma unroll 1
        for (uint32_t i = threadIdx.x; i < count * p.head_dim; i += THREADS) {
            uint32_t line = i / p.head_dim, at = i % p.head_dim;
            work.context[line * work.line + at] = to_float(source[work.slots[line] * width + at]);
        }
    }
}

// The weights of the tile's positions for each head, a warp for each, and what becomes of earlier weights.
__device__ __forceinline__ void weigh(const AttentionParams& p, const Workspace& work, uint32_t count) {
    float scale = __fmul_rn(p.scale, LOG2_E);
    uint32_t lane = threadIdx.x % 32;
#pragma unroll 1
    for (uint32_t head = threadIdx.x / 32; head < work.group; head += WARPS) {
        float score = -INFINITY;
        if (lane < count) {
            float sum = 0.0f;
#pragma unroll 4
            for (uint32_t d = 0; d < p.head_dim; ++d)
                sum = __fmaf_rn(work.queries[head * p.head_dim + d], work.context[lane * work.line + d], sum);
            score = __fmul_rn(sum, scale);
        }
        float before = work.maximum[head];
        float maximum = fmaxf(before, warp_maximum(score));
        float weight = exp2_approximate(__fsub_rn(score, maximum));
        float correction = exp2_approximate(__fsub_rn(before, maximum));
        work.weights[head * CONTEXT + lane] = weight;
        float sum = warp_sum(weight);
        float total = __fmaf_rn(work.total[head], correction, sum);
        __syncwarp();
        if (lane == 0) {
            work.maximum[head] = maximum;
            work.total[head] = total;
            work.correction[head] = correction;
        }
    }
}

template <typename Element, typename Policy>
__device__ __forceinline__ void attention(const AttentionParams& p) {
    begin();
    uint32_t token = blockIdx.x;
    if (token >= static_cast<uint32_t>(p.sizes[TOKENS])) return;
    Workspace work(p);
    uint32_t columns = work.group * p.head_dim;
    uint32_t column0 = blockIdx.y * columns;
    float* result = reinterpret_cast<float*>(shared + p.tile_offset);
    const Element* queries = static_cast<const Element*>(p.queries);
    queries += static_cast<size_t>(token) * p.heads * p.head_dim + column0;
#pragma unroll 1
    for (uint32_t i = threadIdx.x; i < columns; i += THREADS) {
        work.queries[i] = to_float(queries[i]);
        result[i] = 0.0f;
    }
#pragma unroll 1
    for (uint32_t i = threadIdx.x; i < work.group; i += THREADS) {
        work.maximum[i] = -INFINITY;
        work.total[i] = 0.0f;
    }
    // Of padding nothing but the position is looked at.
    uint32_t length = p.positions[token] + 1;
    const int32_t* table = p.block_tables;
    if (length > 0) table += static_cast<size_t>(p.token_sequences[token]) * p.sizes[TABLE_BLOCKS];
#pragma unroll 1
    for (uint32_t first = 0; first < length; first += CONTEXT) {
        uint32_t count = min(CONTEXT, length - first);
        if (threadIdx.x < count) {
            uint32_t position = first + threadIdx.x;
            work.slots[threadIdx.x] = table[position / p.block_size] * p.block_size + position % p.block_size;
        }
        __syncthreads();
        bring<Element>(p, work, p.keys, count);
        __syncthreads();
        weigh(p, work, count);
        __syncthreads();
        bring<Element>(p, work, p.values, count);
        __syncthreads();
#pragma unroll 1
        for (uint32_t i = threadIdx.x; i < columns; i += THREADS) {
            uint32_t head = i / p.head_dim, d = i % p.head_dim;
            float sum = __fmul_rn(result[i], work.correction[head]);
#pragma unroll 4
            for (uint32_t j = 0; j < count; ++j)
                sum = __fmaf_rn(work.weights[head * CONTEXT + j], work.context[j * work.line + d], sum);
            result[i] = sum;
        }
    }
    if (length > 0) {
#pragma unroll 1
        for (uint32_t i = threadIdx.x; i < columns; i += THREADS)
            result[i] = __fdiv_rn(result[i], work.total[i / p.head_dim]);
    }
    Policy::epilogue(p, token, column0, columns);
}
