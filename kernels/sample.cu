// The next token from logits, as the CPU's sampler picks it: repetition penalty, temperature, top-k, top-p, min-p, in
// transformers' order, and a uniform number by splitmix64. Nothing is sorted: a cut of the sorted tokens is a logit and how many
// tokens of exactly that logit are still in, and is found bit by bit. Probabilities are integers, 2^40 for the likeliest
// token's, so that sums have no order. A block of 1024 has a row; the greedy choice is `argmax` of `loss.cu`.

// marks[row, token] = 1 for the tokens seen; others stay. A block of 1024 a row.
KERNEL __launch_bounds__(1024) mark_tokens(u32 *marks, const u32 *tokens, u32 count, u32 vocab) {
    for (u32 i = threadIdx.x; i < count; i += 1024) {
        u32 token = tokens[(u64)blockIdx.x * count + i];
        if (token < vocab)
            marks[(u64)blockIdx.x * vocab + token] = 1;
    }
}

// Logits of tokens seen: the positive divided by the penalty, the others times it; Keskar et al. 2019,
// https://arxiv.org/abs/1909.05858. Grid-stride over all rows.
KERNEL penalise(float *logits, const u32 *marks, u64 n, float penalty) {
    for (u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += (u64)gridDim.x * blockDim.x)
        if (marks[i])
            logits[i] = logits[i] > 0 ? __fdiv_rn(logits[i], penalty) : logits[i] * penalty;
}

// An integer that is larger where the logit is; 0 where it isn't a number, and for no other.
INLINE u32 key_of(float x) {
    u32 bits = __float_as_uint(x);
    return x != x ? 0 : bits ^ (bits >> 31 ? 0xffffffffu : 0x80000000u);
}

// Sum over a block of 1024, in every thread.
INLINE u64 sum_all(u64 x) {
    __shared__ u64 parts[32];
#pragma unroll
    for (int step = 16; step > 0; step >>= 1)
        x += __shfl_xor_sync(ALL, x, step);
    __syncthreads();
    if (threadIdx.x % 32 == 0)
        parts[threadIdx.x / 32] = x;
    __syncthreads();
    x = parts[threadIdx.x % 32];
#pragma unroll
    for (int step = 16; step > 0; step >>= 1)
        x += __shfl_xor_sync(ALL, x, step);
    return x;
}

// A row of logits, and which of its tokens are in: those with keys above `bound`, and the first `ties` with that key.
struct Row {
    const float *z;
    u32 vocab;
    float top, inverse;
    u32 bound;
    u64 ties;

    // Probability over that of the likeliest token, in units of 2^-40.
    __device__ __forceinline__ u64 weight(float x) const {
        return x == x ? (u64)rintf(exp_near((x - top) * inverse) * 1099511627776.0f) : 0;
    }
    // Sum of f over the tokens in with keys from `least` on.
    template <class F> __device__ __forceinline__ u64 sum(u32 least, F f) const {
        u64 sum = 0;
        u32 above = max(least, bound + 1);
        for (u32 i = threadIdx.x; i < vocab; i += 1024)
            if (key_of(z[i]) >= above)
                sum += f(z[i]);
        sum = sum_all(sum);
        if (least <= bound) {
            u32 bits = bound >> 31 ? bound ^ 0x80000000u : ~bound;
            sum += ties * f(__uint_as_float(bits));
        }
        return sum;
    }
    // The largest key from which on the tokens' sum is at least `wanted`, which all of them have.
    template <class F> __device__ __forceinline__ u32 reach(u64 wanted, F f) const {
        u32 key = 0;
        for (u32 bit = 0x80000000u; bit; bit >>= 1)
            if (sum(key | bit, f) >= wanted)
                key |= bit;
        return key;
    }
};

// out[row] = a token; `states` are the generators' states of the rows, seed + 0x9e3779b97f4a7c15 picks. top_k 0, top_p 1 and
// min_p 0 cut nothing; `inverse` is 1 / temperature.
KERNEL __launch_bounds__(1024) sample(const float *logits, const u64 *states, u32 *out, u32 vocab, float inverse, u32 top_k,
                                      double top_p, float min_p) {
    __shared__ float tops[32];
    Row row = {logits + (u64)blockIdx.x * vocab, vocab, __uint_as_float(0xff800000u), inverse, 0, 0};
    for (u32 i = threadIdx.x; i < vocab; i += 1024)
        row.top = fmaxf(row.top, row.z[i]);
    row.top = warp_max(row.top);
    if (threadIdx.x % 32 == 0)
        tops[threadIdx.x / 32] = row.top;
    __syncthreads();
    row.top = warp_max(tops[threadIdx.x % 32]);

    auto one = [](float) { return (u64)1; };
    auto weight = [&](float x) { return row.weight(x); };
    if (top_k > 0 && top_k < vocab && row.sum(0, one) > top_k) {
        u32 key = row.reach(top_k, one);
        u64 above = row.sum(key + 1, one);
        row.bound = key;
        row.ties = top_k - above;
    }
    if (top_p < 1) {
        // Tokens are in as long as those before them sum to less; there is always one.
        u64 limit = max((u64)ceil(top_p * (double)row.sum(0, weight)), (u64)1);
        u32 key = row.reach(limit, weight);
        u64 above = row.sum(key + 1, weight), own = row.weight(__uint_as_float(key >> 31 ? key ^ 0x80000000u : ~key));
        row.bound = key;
        row.ties = (limit - above + own - 1) / own;
    }
    if (min_p > 0) {
        // The least key in whose weight suffices: the largest from which on all those that suffice are.
        u64 least = (u64)rintf(min_p * 1099511627776.0f);
        auto suffices = [&](float x) { return (u64)(row.weight(x) >= least); };
        u32 key = row.reach(row.sum(0, suffices), suffices);
        if (key > row.bound) {
            row.bound = key - 1;
            row.ties = 0;
        }
    }

    u64 z = states[blockIdx.x] + 0x9e3779b97f4a7c15ull;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ z >> 27) * 0x94d049bb133111ebull;
    double uniform = (double)((z ^ z >> 31) >> 11) * (1.0 / 9007199254740992.0);
    u64 total = row.sum(0, weight), before = min((u64)(uniform * (double)total), total - 1);
    if (total == 0) {
        // Logits that say nothing.
        if (threadIdx.x == 0)
            out[blockIdx.x] = 0;
        return;
    }
    u32 key = row.reach(before + 1, weight);
    u64 above = row.sum(key + 1, weight), own = row.weight(__uint_as_float(key >> 31 ? key ^ 0x80000000u : ~key));
    u64 nth = (before - above) / own;

    // The nth token with that key: threads count stretches of the row.
    u32 step = (vocab + 1023) / 1024, first = threadIdx.x * step, last = min(first + step, vocab), count = 0;
    for (u32 i = first; i < last; i++)
        count += key_of(row.z[i]) == key;
    __shared__ u32 counts[1024];
    counts[threadIdx.x] = count;
    __syncthreads();
    u64 earlier = 0;
    for (u32 i = 0; i < threadIdx.x; i++)
        earlier += counts[i];
    if (nth < earlier || nth >= earlier + count)
        return;
    for (u32 i = first; i < last; i++)
        if (key_of(row.z[i]) == key && earlier++ == nth)
            out[blockIdx.x] = i;
}
