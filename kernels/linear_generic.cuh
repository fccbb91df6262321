// Products of any element type and any size, by one multiply-add after the other in the order of k.
#pragma once
#include "linear.cuh"

template <typename Weights>
struct GenericProduct {
    using Element = Weights;
    static constexpr uint32_t ROWS = 8;
    static constexpr bool STAGED = false;
    // So much of k is brought to shared memory at a time, as f32.
    static constexpr uint32_t DEPTH = 32;
    // Lines of weights are one longer than they need, so that a column of them lies in different banks.
    static constexpr uint32_t LINE = DEPTH + 1;
    static constexpr uint32_t SLAB_BYTES = (COLUMN_STEP * LINE + ROWS * DEPTH) * 4;
    static_assert(SLAB_BYTES == 9472, "as linear.cuh says");
    // A thread has one column of so many rows.
    static constexpr uint32_t THREAD_ROWS = ROWS * COLUMN_STEP / THREADS;

    template <typename Policy>
    static __device__ __forceinline__ void load(const Step& step, uint32_t k0, float* weights, float* inputs) {
        const LinearOperand& operand = step.operand;
        const Element* weight = static_cast<const Element*>(operand.weight);
        uint32_t k = k0 + threadIdx.x % DEPTH;
#pragma unroll 4
        for (uint32_t i = 0; i < COLUMN_STEP; i += THREADS / DEPTH) {
            uint32_t line = threadIdx.x / DEPTH + i;
            bool present = k < operand.inner && line < step.columns;
            size_t offset = static_cast<size_t>(step.column0 + line) * operand.inner + k;
            weights[line * LINE + threadIdx.x % DEPTH] = present ? to_float(weight[offset]) : 0.0f;
        }
        if (threadIdx.x < ROWS * DEPTH / 8) {
            uint32_t row = threadIdx.x / (DEPTH / 8);
            uint32_t place = threadIdx.x % (DEPTH / 8) * 8;
            Eight<Element> x;
#pragma unroll
            for (uint32_t i = 0; i < Eight<Element>::WORDS; ++i) x.word[i] = 0;
            if (row < step.live && k0 + place < operand.inner)
                x = Policy::template eight<Element>(step, row, k0 + place);
#pragma unroll
            for (uint32_t i = 0; i < 8; ++i) inputs[row * DEPTH + place + i] = to_float(x.element[i]);
        }
    }

    template <typename Policy>
    static __device__ __forceinline__ void step(const Step& step) {
        float* weights = reinterpret_cast<float*>(shared);
        float* inputs = weights + COLUMN_STEP * LINE;
        uint32_t column = threadIdx.x % COLUMN_STEP;
        uint32_t first_row = threadIdx.x / COLUMN_STEP * THREAD_ROWS;
        float sums[THREAD_ROWS] = {};
#pragma unroll 1
        for (uint32_t k0 = 0; k0 < step.operand.inner; k0 += DEPTH) {
            __syncthreads();
            load<Policy>(step, k0, weights, inputs);
            __syncthreads();
#pragma unroll
            for (uint32_t k = 0; k < DEPTH; ++k) {
#pragma unroll
                for (uint32_t i = 0; i < THREAD_ROWS; ++i) {
                    float x = inputs[(first_row + i) * DEPTH + k];
                    sums[i] = __fmaf_rn(x, weights[column * LINE + k], sums[i]);
                }
            }
        }
        if (column < step.columns) {
#pragma unroll
            for (uint32_t i = 0; i < THREAD_ROWS; ++i) {
                step.tile[(first_row + i) * step.stride + column] = __fmul_rn(sums[i], step.operand.scale);
            }
        }
    }
};
