// Markers of template kernels. Each comes out as one line of PTX, a comment with the registers that it hands over, and
// is replaced by generated instructions before the driver sees the text. The code around believes that the outputs are
// written and that any memory may have changed.
#pragma once
#include "types.cuh"

// Once in a block, by all its threads, before anything reads the input; barriers are allowed. The first row of the
// tile, how many of its rows are live, and the shared address of the scratch.
__device__ __forceinline__ void slot_rows(uint32_t row0, uint32_t live, uint32_t scratch) {
    asm volatile("//@rows %0 %1 %2" ::"r"(row0), "r"(live), "r"(scratch) : "memory");
}

// By single threads, no barriers: the elements [element, element + 8) of row `row` of the input of product `linear`, as
// they are stored. Asked for live rows only, and for `element` within the row; what lies beyond it is zero.
template <typename Element>
__device__ __forceinline__ Eight<Element> slot_input(uint32_t row_in_tile, uint32_t row, uint32_t element,
                                                     uint32_t linear, uint32_t scratch) {
    Eight<Element> x;
    if constexpr (sizeof(Element) == 1) {
        asm volatile("//@input %0 %1 %2 %3 %4 %5 %6"
                     : "=r"(x.word[0]), "=r"(x.word[1])
                     : "r"(row_in_tile), "r"(row), "r"(element), "r"(linear), "r"(scratch)
                     : "memory");
    } else if constexpr (sizeof(Element) == 2) {
        asm volatile("//@input %0 %1 %2 %3 %4 %5 %6 %7 %8"
                     : "=r"(x.word[0]), "=r"(x.word[1]), "=r"(x.word[2]), "=r"(x.word[3])
                     : "r"(row_in_tile), "r"(row), "r"(element), "r"(linear), "r"(scratch)
                     : "memory");
    } else {
        asm volatile("//@input %0 %1 %2 %3 %4 %5 %6 %7 %8 %9 %10 %11 %12"
                     : "=r"(x.word[0]), "=r"(x.word[1]), "=r"(x.word[2]), "=r"(x.word[3]), "=r"(x.word[4]),
                       "=r"(x.word[5]), "=r"(x.word[6]), "=r"(x.word[7])
                     : "r"(row_in_tile), "r"(row), "r"(element), "r"(linear), "r"(scratch)
                     : "memory");
    }
    return x;
}

// Once in a block, by all its threads, when the f32 tile is complete; barriers are allowed. The shared address of the
// tile, its first row, how many of its rows are live, its first column, the bundle, the shared address of the scratch.
__device__ __forceinline__ void slot_epilogue(uint32_t tile, uint32_t row0, uint32_t live, uint32_t column0,
                                              uint32_t bundle, uint32_t scratch) {
    asm volatile("//@epilogue %0 %1 %2 %3 %4 %5" ::"r"(tile), "r"(row0), "r"(live), "r"(column0), "r"(bundle),
                 "r"(scratch)
                 : "memory");
}
