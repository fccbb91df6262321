// Products on the tensor cores. Columns of the result are the rows of the instruction's first operand, since there are
// always many of them; rows of the result are its second operand's columns, of which eight are the least.
//
// Rows must be multiples of 16 bytes at addresses that are: `inner` is a multiple of 8, of 16 for e4m3.
#pragma once
#include "linear.cuh"

template <typename Element>
constexpr bool is_bf16 = false;
template <>
constexpr bool is_bf16<bf16> = true;

__device__ __forceinline__ void load_matrices(uint32_t (&d)[4], uint32_t address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
                 : "r"(address)
                 : "memory");
}

// sum += A * B for 16 x 16 elements of A and 16 x 8 of B.
template <bool BF16>
__device__ __forceinline__ void multiply(float (&sum)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3,
                                         uint32_t b0, uint32_t b1) {
    if constexpr (BF16) {
        asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
                     "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                     : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
                     : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
    } else {
        asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
                     "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                     : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
                     : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
    }
}

// sum += w * x for 32 bytes of k: `w` has those of 16 rows of weights as two halves of two matrices, `x` those of eight
// rows of the input.
template <typename Element>
__device__ __forceinline__ void multiply_chunks(float (&sum)[4], const uint32_t (&w)[4], uint32_t x0, uint32_t x1) {
    if constexpr (sizeof(Element) == 1) {
        // A lane holds four neighbours of a row where the instruction has two pairs eight apart. Both operands are
        // permuted alike, and the sum over k within an instruction has no order.
        multiply<false>(sum, e4m3_pair_to_f16_pair(w[0]), e4m3_pair_to_f16_pair(w[1]),
                        e4m3_pair_to_f16_pair(w[0] >> 16), e4m3_pair_to_f16_pair(w[1] >> 16),
                        e4m3_pair_to_f16_pair(x0), e4m3_pair_to_f16_pair(x0 >> 16));
        multiply<false>(sum, e4m3_pair_to_f16_pair(w[2]), e4m3_pair_to_f16_pair(w[3]),
                        e4m3_pair_to_f16_pair(w[2] >> 16), e4m3_pair_to_f16_pair(w[3] >> 16),
                        e4m3_pair_to_f16_pair(x1), e4m3_pair_to_f16_pair(x1 >> 16));
    } else {
        multiply<is_bf16<Element>>(sum, w[0], w[1], w[2], w[3], x0, x1);
    }
}

// With `IS_STAGED` the inputs of the tile's rows are brought to shared memory as a whole, before the weights: making them takes
// time that a slab of weights does not have.
template <typename Weights, uint32_t TILE_ROWS, bool IS_STAGED = false>
struct TensorProduct {
    using Element = Weights;
    static constexpr uint32_t ROWS = TILE_ROWS;
    static constexpr bool STAGED = IS_STAGED;
    // A slab is 128 bytes of k of the step's columns and, if they are not staged, of the tile's rows: lines of eight chunks of
    // 16 bytes.
    static constexpr uint32_t LINE_BYTES = 128;
    static constexpr uint32_t LINE_ELEMENTS = LINE_BYTES / sizeof(Element);
    static constexpr uint32_t CHUNK_ELEMENTS = 16 / sizeof(Element);
    static constexpr uint32_t SLAB = (COLUMN_STEP + (STAGED ? 0 : ROWS)) * LINE_BYTES;
    // While one slab is multiplied, the others are on their way.
    static constexpr uint32_t STAGES = ROWS == 8 ? 3 : 2;
    static constexpr uint32_t AHEAD = STAGES - 1;
    static constexpr uint32_t SLAB_BYTES = STAGES * SLAB;
    static_assert(SLAB_BYTES == (STAGED ? 24576 : ROWS == 8 ? 27648 : 32768), "as linear.cuh says");
    static_assert(!STAGED || ROWS == 8, "more rows take more shared memory than there is");
    static_assert(ROWS % 8 == 0 && COLUMN_STEP == 16 * WARPS, "a warp has 16 columns");

    // Where a chunk lies within its part of a slab. Lines are permuted so that eight lines' same chunk, which is what
    // `ldmatrix` reads at once, lie in different banks.
    static __device__ __forceinline__ uint32_t place(uint32_t line, uint32_t chunk) {
        return line * LINE_BYTES + (chunk ^ line % 8) * 16;
    }

    template <typename Policy>
    static __device__ __forceinline__ void load(const Step& step, uint32_t slab, uint32_t address) {
        const LinearOperand& operand = step.operand;
        const Element* weight = static_cast<const Element*>(operand.weight);
        uint32_t chunk = threadIdx.x % 8;
        uint32_t element = slab * LINE_ELEMENTS + chunk * CHUNK_ELEMENTS;
        bool within = element < operand.inner;
#pragma unroll
        for (uint32_t i = 0; i < COLUMN_STEP; i += THREADS / 8) {
            uint32_t line = threadIdx.x / 8 + i;
            bool present = within && line < step.columns;
            size_t offset = static_cast<size_t>(step.column0 + line) * operand.inner + element;
            copy_chunk(address + place(line, chunk), weight + (present ? offset : 0), present);
        }
        if constexpr (STAGED) return;
        address += COLUMN_STEP * LINE_BYTES;
#pragma unroll 1
        for (uint32_t i = 0; i < ROWS; i += THREADS / 8) {
            uint32_t line = threadIdx.x / 8 + i;
            if (within && line < step.live) {
                Policy::template chunk<Element>(step, address + place(line, chunk), line, element);
            } else if (ROWS >= THREADS / 8 || line < ROWS) {
                asm volatile("st.shared.v4.b32 [%0], {%1, %1, %1, %1};" ::"r"(address + place(line, chunk)), "r"(0)
                             : "memory");
            }
        }
        // Lanes whose lines or chunks are absent have gone another way, and `compute` needs whole warps.
        __syncwarp();
    }

    // Bytes between staged rows: a chunk more than they need, so that eight rows' same chunk lies in different banks.
    static __device__ __forceinline__ uint32_t staged_line(uint32_t inner) {
        return (inner + LINE_ELEMENTS - 1) / LINE_ELEMENTS * LINE_BYTES + 16;
    }

    // Makes the inputs of the live rows, with zeros behind them up to a whole slab.
    template <typename Policy>
    static __device__ __forceinline__ void stage(const Step& step) {
        uint32_t line = staged_line(step.operand.inner), chunks = line / 16 - 1;
#pragma unroll 1
        for (uint32_t i = threadIdx.x; i < step.live * chunks; i += THREADS) {
            uint32_t row = i / chunks, chunk = i % chunks;
            uint32_t address = step.staged + row * line + chunk * 16;
            if (chunk * CHUNK_ELEMENTS < step.operand.inner) {
                Policy::template chunk<Element>(step, address, row, chunk * CHUNK_ELEMENTS);
            } else {
                asm volatile("st.shared.v4.b32 [%0], {%1, %1, %1, %1};" ::"r"(address), "r"(0) : "memory");
            }
        }
    }

    // Where a lane's chunk of the inputs is, from chunk `half` of a slab on. Rows that are not live have those of the last
    // live one, and nobody looks at what comes of it.
    static __device__ __forceinline__ uint32_t input_place(const Step& step, uint32_t slab, uint32_t address,
                                                           uint32_t tile, uint32_t half) {
        uint32_t lane = threadIdx.x % 32;
        if constexpr (STAGED) {
            uint32_t row = min(lane % 8, step.live - 1);
            return step.staged + row * staged_line(step.operand.inner) + slab * LINE_BYTES + (half + lane / 8) * 16;
        } else {
            return address + place(COLUMN_STEP + tile * 8 + lane % 8, half + lane / 8);
        }
    }

    static __device__ __forceinline__ void compute(const Step& step, float (&sums)[ROWS / 8][4], uint32_t slab,
                                                   uint32_t address) {
        uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
        for (uint32_t half = 0; half < 8; half += 4) {
            uint32_t w[2][4];
#pragma unroll
            for (uint32_t i = 0; i < 2; ++i)
                load_matrices(w[i], address + place(warp * 16 + lane % 16, half + 2 * i + lane / 16));
#pragma unroll
            for (uint32_t tile = 0; tile < ROWS / 8; ++tile) {
                uint32_t x[4];
                load_matrices(x, input_place(step, slab, address, tile, half));
                multiply_chunks<Element>(sums[tile], w[0], x[0], x[1]);
                multiply_chunks<Element>(sums[tile], w[1], x[2], x[3]);
            }
        }
    }

    template <typename Policy>
    static __device__ __forceinline__ void step(const Step& step) {
        uint32_t slabs = (step.operand.inner + LINE_ELEMENTS - 1) / LINE_ELEMENTS;
        uint32_t base = shared_address(shared);
        float sums[ROWS / 8][4] = {};
#pragma unroll 1
        for (uint32_t slab = 0; slab < slabs + AHEAD; ++slab) {
            asm volatile("cp.async.wait_group %0;" ::"n"(AHEAD - 1) : "memory");
            // All have their part of the slab to multiply, and nobody reads the one that is overwritten.
            __syncthreads();
            if (slab < slabs) load<Policy>(step, slab, base + slab % STAGES * SLAB);
            asm volatile("cp.async.commit_group;" ::: "memory");
            if (slab >= AHEAD) compute(step, sums, slab - AHEAD, base + (slab - AHEAD) % STAGES * SLAB);
        }
        // A lane has two columns of two rows of each tile.
        uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
        for (uint32_t tile = 0; tile < ROWS / 8; ++tile) {
#pragma unroll
            for (uint32_t i = 0; i < 4; ++i) {
                uint32_t row = tile * 8 + lane % 4 * 2 + i % 2;
                uint32_t column = warp * 16 + lane / 4 + i / 2 * 8;
                float value = __fmul_rn(sums[tile][i], step.operand.scale);
                if (column < step.columns) step.tile[row * step.stride + column] = value;
            }
        }
    }
};
