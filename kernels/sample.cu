// targets: all
// The next token of each row of logits: the likeliest, or one drawn with a seed.
//
// Grid: one block for each row. A row that the host would refuse gets no token: one with a logit that is NaN or positive
// infinity, and one without any above negative infinity.
#include "types.cuh"

// What a row without a token gets.
constexpr uint32_t NO_TOKEN = 0xffffffffu;

struct ArgmaxParams {
    const int32_t* sizes;
    // [logit rows, vocabulary].
    const float* logits;
    // [logit rows].
    uint32_t* tokens;
    uint32_t vocabulary;
};

struct SampleRow {
    // Zero asks for the likeliest token, and less than zero for none.
    float temperature;
    uint32_t padding;
    // A row's randomness is a function of these two alone.
    uint64_t seed, counter;
};

struct SampleParams {
    const int32_t* sizes;
    const float* logits;
    uint32_t* tokens;
    const SampleRow* rows;
    uint32_t vocabulary;
};
static_assert(sizeof(ArgmaxParams) == 32 && sizeof(SampleRow) == 24 && sizeof(SampleParams) == 40, "the host's");

// The best token so far: the highest score, and the first among equals. A row that is refused has the highest score of
// all, and no token; all other scores are finite.
struct Best {
    float score = -INFINITY;
    uint32_t token = NO_TOKEN;
    bool refused = false;

    // A later token of the thread.
    __device__ __forceinline__ void offer(float logit, float other, uint32_t index) {
        // Neither NaN nor positive infinity is less.
        refused = refused || !(logit < INFINITY);
        if (other > score) score = other, token = index;
    }

    __device__ __forceinline__ void join(float other, uint32_t index) {
        if (other > score || (other == score && index < token)) score = other, token = index;
    }
};

// Writes the best token of the block's threads.
__device__ __forceinline__ void store_best(Best best, uint32_t* tokens) {
    __shared__ float score_of_warp[WARPS];
    __shared__ uint32_t token_of_warp[WARPS];
    if (best.refused) best.score = INFINITY, best.token = NO_TOKEN;
#pragma unroll
    for (uint32_t step = 16; step > 0; step /= 2) {
        float score = __shfl_xor_sync(ALL_LANES, best.score, step);
        uint32_t token = __shfl_xor_sync(ALL_LANES, best.token, step);
        best.join(score, token);
    }
    if (threadIdx.x % 32 == 0) {
        score_of_warp[threadIdx.x / 32] = best.score;
        token_of_warp[threadIdx.x / 32] = best.token;
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        for (uint32_t i = 1; i < WARPS; ++i) best.join(score_of_warp[i], token_of_warp[i]);
        tokens[blockIdx.x] = best.token;
    }
}

// Philox4x32-10, Salmon et al., "Parallel random numbers: as easy as 1, 2, 3": four random words for each counter.
__device__ __forceinline__ uint4 philox(uint4 counter, uint32_t key0, uint32_t key1) {
#pragma unroll
    for (uint32_t round = 0; round < 10; ++round) {
        uint32_t high0 = __umulhi(0xD2511F53u, counter.x), low0 = 0xD2511F53u * counter.x;
        uint32_t high1 = __umulhi(0xCD9E8D57u, counter.z), low1 = 0xCD9E8D57u * counter.z;
        counter = make_uint4(high1 ^ counter.y ^ key0, low1, high0 ^ counter.w ^ key1, low0);
        key0 += 0x9E3779B9u, key1 += 0xBB67AE85u;
    }
    return counter;
}

// The logarithm of 1 / E for an exponentially distributed E: the largest of logit + noise is at each token with the
// probability that softmax gives it. Small E decide, and those are where the numbers near zero lie densest.
__device__ __forceinline__ float gumbel(uint32_t word) {
    // At least 2^-33, and less than one.
    float uniform = fminf(__fmul_rn(__fadd_rn(__uint2float_rn(word), 0.5f), 0x1p-32f), 0x1.fffffep-1f);
    return -logf(-log1pf(-uniform));
}

extern "C" __global__ void __launch_bounds__(THREADS) argmax_f32(const __grid_constant__ ArgmaxParams p) {
    begin();
    uint32_t row = blockIdx.x;
    if (row >= static_cast<uint32_t>(p.sizes[LOGIT_ROWS])) return;
    const float* logits = p.logits + static_cast<size_t>(row) * p.vocabulary;
    Best best;
#pragma unroll 4
    for (uint32_t i = threadIdx.x; i < p.vocabulary; i += THREADS) best.offer(logits[i], logits[i], i);
    store_best(best, p.tokens);
}

extern "C" __global__ void __launch_bounds__(THREADS) sample_f32(const __grid_constant__ SampleParams p) {
    begin();
    uint32_t row = blockIdx.x;
    if (row >= static_cast<uint32_t>(p.sizes[LOGIT_ROWS])) return;
    const float* logits = p.logits + static_cast<size_t>(row) * p.vocabulary;
    SampleRow how = p.rows[row];
    Best best;
    if (how.temperature == 0.0f) {
#pragma unroll 4
        for (uint32_t i = threadIdx.x; i < p.vocabulary; i += THREADS) best.offer(logits[i], logits[i], i);
    } else if (how.temperature > 0.0f) {
        // Four neighbouring tokens share the four words of one counter.
#pragma unroll 1
        for (uint32_t i = threadIdx.x * 4; i < p.vocabulary; i += THREADS * 4) {
            uint4 counter = make_uint4(how.counter, how.counter >> 32, i / 4, 0);
            uint4 random = philox(counter, how.seed, how.seed >> 32);
            uint32_t words[4] = {random.x, random.y, random.z, random.w};
#pragma unroll
            for (uint32_t j = 0; j < 4; ++j) {
                if (i + j < p.vocabulary) {
                    float logit = logits[i + j];
                    float score = __fadd_rn(__fdiv_rn(logit, how.temperature), gumbel(words[j]));
                    // Finite, unless the row is refused or the token masked.
                    best.offer(logit, fminf(score, 0x1.fffffep127f), i + j);
                }
            }
        }
    }
    store_best(best, p.tokens);
}
