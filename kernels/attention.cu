// targets: all
// Attention whose result lies in memory.
#include "attention.cuh"

#define ATTENTION(name, element)                                                                            \
    extern "C" __global__ void __launch_bounds__(THREADS) name(const __grid_constant__ AttentionParams p) { \
        attention<element, Plain>(p);                                                                       \
    }

ATTENTION(attention_bf16, bf16)
ATTENTION(attention_f16, f16)
ATTENTION(attention_f32, float)
