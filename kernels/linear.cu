// targets: all
// Products whose inputs and results lie in memory.
#include "linear_generic.cuh"
#include "linear_tensor.cuh"

#define LINEAR(name, ...)                                                                                \
    extern "C" __global__ void __launch_bounds__(THREADS) name(const __grid_constant__ LinearParams p) { \
        linear<__VA_ARGS__, Plain>(p);                                                                   \
    }

LINEAR(linear_bf16_8, TensorProduct<bf16, 8>)
LINEAR(linear_bf16_64, TensorProduct<bf16, 64>)
LINEAR(linear_f16_8, TensorProduct<f16, 8>)
LINEAR(linear_f16_64, TensorProduct<f16, 64>)
LINEAR(linear_e4m3_8, TensorProduct<e4m3, 8>)
LINEAR(linear_e4m3_64, TensorProduct<e4m3, 64>)
LINEAR(linear_generic_f32, GenericProduct<float>)
LINEAR(linear_generic_bf16, GenericProduct<bf16>)
LINEAR(linear_generic_f16, GenericProduct<f16>)
LINEAR(linear_generic_e4m3, GenericProduct<e4m3>)
