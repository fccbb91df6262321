// The least kernels that the driver's own tests need.
extern "C" __global__ void add(float* out, const float* a, const float* b, int count) {
    int index = blockIdx.x * blockDim.x + threadIdx.x;
    if (index < count) out[index] = a[index] + b[index];
}

// A block adds up a row.
extern "C" __global__ void total(float* out, const float* in, int width) {
    __shared__ float sums[128];
    float sum = 0.f;
    for (int i = threadIdx.x; i < width; i += blockDim.x) sum += in[blockIdx.x * width + i];
    sums[threadIdx.x] = sum;
    for (int half = 64; half > 0; half /= 2) {
        __syncthreads();
        if (threadIdx.x < half) sums[threadIdx.x] += sums[threadIdx.x + half];
    }
    if (threadIdx.x == 0) out[blockIdx.x] = sums[0];
}

// The barrier is missing.
extern "C" __global__ void racy(float* out, const float* in, int count) {
    __shared__ float values[128];
    values[threadIdx.x] = threadIdx.x < count ? in[threadIdx.x] : 0.f;
    out[threadIdx.x] = values[127 - threadIdx.x];
}
