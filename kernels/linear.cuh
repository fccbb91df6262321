// Products of rows with weights: y[r, c] = scale * sum over k of x[r, k] * w[c, k], weights as checkpoints store them.
//
// A launch runs up to eight products in up to eight bundles. A block has one tile of rows and one tile of columns of
// each product of its bundle, computes them one after the other into an f32 tile in shared memory, and then its policy
// stores them. What an element is depends on its row of x and its row of w alone: its sum runs over k in the same
// steps in every tile of every kernel for the same element type, except between the tensor cores and `generic`.
//
// Plain kernels have inputs and results in memory. Templates end in `_epilogue` where generated code takes the results, and in
// `_slots` where it makes the inputs too.
//
// Dynamic shared memory, laid out by the host: `SLAB_BYTES` of the kernel at offset 0; the tile, f32 [products of the
// bundle][ROWS][tile_columns], at `tile_offset`; what the slots ask for at `scratch_offset`; and for the `_slots` of the tensor
// cores, at `staged_offset`, the inputs of a tile's rows: ROWS lines of ceil(inner / 128 bytes) * 128 + 16 bytes.
//
//     kernel                                              ROWS   SLAB_BYTES
//     linear_{bf16,f16,e4m3}_8, _8_epilogue                  8        27648
//     linear_{bf16,f16,e4m3}_64, _64_epilogue               64        32768
//     linear_{bf16,f16,e4m3}_8_slots                         8        24576
//     linear_generic_{f32,bf16,f16,e4m3}, _slots             8         9472
#pragma once
#include "slots.cuh"
#include "types.cuh"

struct LinearOperand {
    const void* weight;
    // Where slots make the input: a number, the same for products of one input.
    const void* input;
    void* output;
    uint32_t columns, inner;
    float scale;
    uint32_t output_type;
};

struct LinearBundle {
    uint32_t first_tile, first_linear, linears, tile_columns;
};

struct LinearParams {
    const int32_t* sizes;
    uint32_t row_dim, bundles, tile_offset, scratch_offset, staged_offset;
    LinearBundle bundle[8];
    LinearOperand linear[8];
    const void* pointers[64];
};
static_assert(sizeof(LinearOperand) == 40 && sizeof(LinearBundle) == 16 && sizeof(LinearParams) == 992, "the host's");

// A block walks through its columns in steps of this size.
constexpr uint32_t COLUMN_STEP = 64;

extern __shared__ __align__(16) unsigned char shared[];

// What one step of a block works on.
struct Step {
    const LinearOperand& operand;
    uint32_t linear;
    // The first row and the number of live rows of the tile.
    uint32_t row0, live;
    // The first column and how many there are, at most COLUMN_STEP.
    uint32_t column0, columns;
    // The shared addresses of the scratch, and of staged inputs.
    uint32_t scratch, staged;
    // Where the result goes, and how far apart rows are there.
    float* tile;
    uint32_t stride;
};

// Copies 16 bytes to shared memory in the background, or zeros if they are absent.
__device__ __forceinline__ void copy_chunk(uint32_t destination, const void* source, bool present) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(destination), "l"(source),
                 "r"(present ? 16 : 0)
                 : "memory");
}

// The policy of plain kernels: inputs come from memory, results go there.
struct Plain {
    static __device__ __forceinline__ void rows(uint32_t, uint32_t, uint32_t) {}

    // Brings the 16 bytes of the input from `element` on to `destination`.
    template <typename Element>
    static __device__ __forceinline__ void chunk(const Step& step, uint32_t destination, uint32_t row,
                                                 uint32_t element) {
        const Element* input = static_cast<const Element*>(step.operand.input);
        copy_chunk(destination, input + static_cast<size_t>(step.row0 + row) * step.operand.inner + element, true);
    }

    // The eight elements of the input from `element` on.
    template <typename Element>
    static __device__ __forceinline__ Eight<Element> eight(const Step& step, uint32_t row, uint32_t element) {
        Eight<Element> x;
        uint32_t inner = step.operand.inner;
        const Element* input = static_cast<const Element*>(step.operand.input);
        input += static_cast<size_t>(step.row0 + row) * inner + element;
#pragma unroll
        for (uint32_t i = 0; i < 8; ++i) x.element[i] = element + i < inner ? input[i] : Element{};
        return x;
    }

    template <uint32_t ROWS>
    static __device__ __forceinline__ void epilogue(const LinearParams& p, const LinearBundle& bundle, uint32_t,
                                                    uint32_t row0, uint32_t live, uint32_t column0, uint32_t) {
        const float* tile = reinterpret_cast<const float*>(shared + p.tile_offset);
#pragma unroll 1
        for (uint32_t i = 0; i < bundle.linears; ++i, tile += ROWS * bundle.tile_columns) {
            const LinearOperand& operand = p.linear[bundle.first_linear + i];
            uint32_t columns = min(bundle.tile_columns, operand.columns - column0);
#pragma unroll 1
            for (uint32_t row = 0; row < live; ++row) {
                size_t first = static_cast<size_t>(row0 + row) * operand.columns + column0;
#pragma unroll 1
                for (uint32_t column = threadIdx.x; column < columns; column += THREADS) {
                    float value = tile[row * bundle.tile_columns + column];
                    store_rounded(operand.output, operand.output_type, first + column, value);
                }
            }
        }
    }
};

// The policy of template kernels: generated code brings inputs and takes results.
struct Slots {
    static __device__ __forceinline__ void rows(uint32_t row0, uint32_t live, uint32_t scratch) {
        // Every step begins with a barrier, so the inputs' slot sees what this one wrote.
        slot_rows(row0, live, scratch);
    }

    template <typename Element>
    static __device__ __forceinline__ void chunk(const Step& step, uint32_t destination, uint32_t row,
                                                 uint32_t element) {
#pragma unroll 1
        for (uint32_t bytes = 0; bytes < 16; bytes += 8 * sizeof(Element)) {
            Eight<Element> x = eight<Element>(step, row, element + bytes / sizeof(Element));
            if constexpr (Eight<Element>::WORDS == 2) {
                asm volatile("st.shared.v2.b32 [%0], {%1, %2};" ::"r"(destination + bytes), "r"(x.word[0]),
                             "r"(x.word[1])
                             : "memory");
            } else {
                asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(destination), "r"(x.word[0]),
                             "r"(x.word[1]), "r"(x.word[2]), "r"(x.word[3])
                             : "memory");
            }
        }
    }

    template <typename Element>
    static __device__ __forceinline__ Eight<Element> eight(const Step& step, uint32_t row, uint32_t element) {
        return slot_input<Element>(row, step.row0 + row, element, step.linear, step.scratch);
    }

    template <uint32_t ROWS>
    static __device__ __forceinline__ void epilogue(const LinearParams& p, const LinearBundle&, uint32_t bundle,
                                                    uint32_t row0, uint32_t live, uint32_t column0, uint32_t scratch) {
        slot_epilogue(shared_address(shared + p.tile_offset), row0, live, column0, bundle, scratch);
    }
};

// The policy of templates whose inputs come from memory: generated code takes results.
struct Epilogue : Plain {
    template <uint32_t ROWS>
    static __device__ __forceinline__ void epilogue(const LinearParams& p, const LinearBundle& bundle, uint32_t number,
                                                    uint32_t row0, uint32_t live, uint32_t column0, uint32_t scratch) {
        Slots::template epilogue<ROWS>(p, bundle, number, row0, live, column0, scratch);
    }
};

// One product after the other of the bundle that the block belongs to. `Product::step` computes up to COLUMN_STEP
// columns of one.
template <typename Product, typename Policy>
__device__ __forceinline__ void linear(const LinearParams& p) {
    constexpr uint32_t ROWS = Product::ROWS;
    begin();
    uint32_t rows = p.sizes[p.row_dim];
    uint32_t row0 = blockIdx.y * ROWS;
    if (row0 >= rows) return;
    uint32_t live = min(ROWS, rows - row0);
    uint32_t number = p.bundles - 1;
#pragma unroll 1
    while (p.bundle[number].first_tile > blockIdx.x) --number;
    const LinearBundle& bundle = p.bundle[number];
    uint32_t column0 = (blockIdx.x - bundle.first_tile) * bundle.tile_columns;
    uint32_t scratch = shared_address(shared + p.scratch_offset);

    Policy::rows(row0, live, scratch);
    uint32_t staged = shared_address(shared + p.staged_offset);
    const void* present = nullptr;
    float* tile = reinterpret_cast<float*>(shared + p.tile_offset);
#pragma unroll 1
    for (uint32_t i = 0; i < bundle.linears; ++i, tile += ROWS * bundle.tile_columns) {
        uint32_t index = bundle.first_linear + i;
        const LinearOperand& operand = p.linear[index];
        uint32_t columns = min(bundle.tile_columns, operand.columns - column0);
        if constexpr (Product::STAGED) {
            if (present != operand.input) {
                // The scalars of the rows are there, and nobody reads the inputs that are overwritten.
                __syncthreads();
                Product::template stage<Policy>(Step{operand, index, row0, live, column0, 0, scratch, staged, tile, 0});
                present = operand.input;
            }
        }
#pragma unroll 1
        for (uint32_t at = 0; at < columns; at += COLUMN_STEP) {
            uint32_t here = min(COLUMN_STEP, columns - at);
            Step step{operand, index, row0, live, column0 + at, here, scratch, staged, tile + at, bundle.tile_columns};
            Product::template step<Policy>(step);
        }
    }
    __syncthreads();
    Policy::template epilogue<ROWS>(p, bundle, number, row0, live, column0, scratch);
}
