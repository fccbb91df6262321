// Plain reads and copies, 16 bytes a thread and step: the bandwidth that other kernels are held against.
// targets: all

// Threads of a block, in both kernels.
constexpr unsigned int THREADS = 256;

// to[0..vectors] = from[0..vectors], in units of 16 bytes. Both are aligned to 16 bytes and don't overlap. Any grid.
extern "C" __global__ void __launch_bounds__(THREADS)
    copy_vectors(uint4 *__restrict__ to, const uint4 *__restrict__ from, unsigned long long vectors) {
    const unsigned long long step = static_cast<unsigned long long>(gridDim.x) * THREADS;
    unsigned long long index = static_cast<unsigned long long>(blockIdx.x) * THREADS + threadIdx.x;
#pragma unroll 4
    for (; index < vectors; index += step) {
        to[index] = from[index];
    }
}

// sums[t] is the sum, modulo 2^32, of all 32-bit words in the vectors that thread t of the whole grid reads: so no read
// can be left out. `sums` has one element for each thread of the grid. Any grid.
extern "C" __global__ void __launch_bounds__(THREADS)
    read_vectors(unsigned int *__restrict__ sums, const uint4 *__restrict__ from, unsigned long long vectors) {
    const unsigned long long step = static_cast<unsigned long long>(gridDim.x) * THREADS;
    const unsigned long long thread = static_cast<unsigned long long>(blockIdx.x) * THREADS + threadIdx.x;
    unsigned int sum = 0;
#pragma unroll 4
    for (unsigned long long index = thread; index < vectors; index += step) {
        const uint4 vector = from[index];
        sum += vector.x + vector.y + vector.z + vector.w;
    }
    sums[thread] = sum;
}
