// targets: ptx
// Products whose inputs and results are generated code: templates, no kernels as they are.
#include "linear_generic.cuh"
#include "linear_tensor.cuh"

#define LINEAR(name, ...)                                                                                \
    extern "C" __global__ void __launch_bounds__(THREADS) name(const __grid_constant__ LinearParams p) { \
        linear<__VA_ARGS__, Slots>(p);                                                                   \
    }

LINEAR(linear_bf16_8_slots, TensorProduct<bf16, 8>)
LINEAR(linear_bf16_64_slots, TensorProduct<bf16, 64>)
LINEAR(linear_f16_8_slots, TensorProduct<f16, 8>)
LINEAR(linear_f16_64_slots, TensorProduct<f16, 64>)
LINEAR(linear_e4m3_8_slots, TensorProduct<e4m3, 8>)
LINEAR(linear_e4m3_64_slots, TensorProduct<e4m3, 64>)
LINEAR(linear_generic_f32_slots, GenericProduct<float>)
LINEAR(linear_generic_bf16_slots, GenericProduct<bf16>)
LINEAR(linear_generic_f16_slots, GenericProduct<f16>)
LINEAR(linear_generic_e4m3_slots, GenericProduct<e4m3>)
