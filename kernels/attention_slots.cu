// targets: ptx
// Attention whose result generated code takes: templates, no kernels as they are.
#include "attention.cuh"

#define ATTENTION(name, element)                                                                            \
    extern "C" __global__ void __launch_bounds__(THREADS) name(const __grid_constant__ AttentionParams p) { \
        attention<element, Slots>(p);                                                                       \
    }

ATTENTION(attention_bf16_slots, bf16)
ATTENTION(attention_f16_slots, f16)
ATTENTION(attention_f32_slots, float)
