// targets: ptx
// Products whose results, or inputs and results, are generated code: templates, no kernels as they are.
#include "linear_generic.cuh"
#include "linear_tensor.cuh"

#define LINEAR(name, policy, ...)                                                                        \
    extern "C" __global__ void __launch_bounds__(THREADS) name(const __grid_constant__ LinearParams p) { \
        linear<__VA_ARGS__, policy>(p);                                                                  \
    }

LINEAR(linear_bf16_8_epilogue, Epilogue, TensorProduct<bf16, 8>)
LINEAR(linear_bf16_64_epilogue, Epilogue, TensorProduct<bf16, 64>)
LINEAR(linear_f16_8_epilogue, Epilogue, TensorProduct<f16, 8>)
LINEAR(linear_f16_64_epilogue, Epilogue, TensorProduct<f16, 64>)
LINEAR(linear_e4m3_8_epilogue, Epilogue, TensorProduct<e4m3, 8>)
LINEAR(linear_e4m3_64_epilogue, Epilogue, TensorProduct<e4m3, 64>)
LINEAR(linear_bf16_8_slots, Slots, TensorProduct<bf16, 8, true>)
LINEAR(linear_f16_8_slots, Slots, TensorProduct<f16, 8, true>)
LINEAR(linear_e4m3_8_slots, Slots, TensorProduct<e4m3, 8, true>)
LINEAR(linear_generic_f32_slots, Slots, GenericProduct<float>)
LINEAR(linear_generic_bf16_slots, Slots, GenericProduct<bf16>)
LINEAR(linear_generic_f16_slots, Slots, GenericProduct<f16>)
LINEAR(linear_generic_e4m3_slots, Slots, GenericProduct<e4m3>)
