// Rows by index: embedding, its gradient, the rows that have a label; and dropout, whose places are rows too.

// to[i] = from[index[i]], rows of `width`; a block a row.
template <class A, class B> INLINE void gather(B *to, const A *from, const u32 *index, u32 width) {
    u64 row = blockIdx.x, at = index[row];
    for (u32 c = threadIdx.x; c < width; c += blockDim.x)
        put(to[row * width + c], get(from[at * width + c]));
}
// to[index[i]] = from[i]; no index twice.
template <class A, class B> INLINE void scatter(B *to, const A *from, const u32 *index, u32 width) {
    u64 row = blockIdx.x, at = index[row];
    for (u32 c = threadIdx.x; c < width; c += blockDim.x)
        put(to[at * width + c], get(from[row * width + c]));
}

// to[index[i]] += from[i], added in the order of i, without atomics: the block of an index's first occurrence adds them all.
template <class A> INLINE void scatter_add(float *to, const A *from, const u32 *index, u32 rows, u32 width) {
    u32 row = blockIdx.x, wanted = index[row];
    // Which of 256 rows have the index, a bit each.
    __shared__ u32 same[8];
    auto look = [&](u32 first, u32 end) {
        u32 i = first + threadIdx.x;
        u32 mask = __ballot_sync(ALL, i < end && index[i] == wanted);
        __syncthreads();
        if (threadIdx.x % 32 == 0)
            same[threadIdx.x / 32] = mask;
        __syncthreads();
    };
    for (u32 first = 0; first < row; first += 256) {
        look(first, row);
        u32 any = 0;
        for (u32 warp = 0; warp < 8; warp++)
            any |= same[warp];
        if (any)
            return;
    }
    to += (u64)wanted * width;
    for (u32 first = row; first < rows; first += 256) {
        look(first, rows);
        for (u32 c = threadIdx.x; c < width; c += 256) {
            float sum = to[c];
            for (u32 warp = 0; warp < 8; warp++)
                for (u32 rest = same[warp]; rest; rest &= rest - 1)
                    sum += get(from[(u64)(first + warp * 32 + __ffs(rest) - 1) * width + c]);
            to[c] = sum;
        }
    }
}

#define ROWS(A, B, NAME)                                                                                                \
    KERNEL gather_rows_##NAME(B *to, const A *from, const u32 *index, u32 width) { gather(to, from, index, width); }    \
    KERNEL scatter_rows_##NAME(B *to, const A *from, const u32 *index, u32 width) { scatter(to, from, index, width); }
ROWS(float, float, f32_f32)
ROWS(bf16, bf16, bf16_bf16)
ROWS(f16, f16, f16_f16)
ROWS(float, bf16, f32_bf16)
ROWS(float, f16, f32_f16)
KERNEL __launch_bounds__(256) scatter_add_rows_f32(float *to, const float *from, const u32 *index, u32 rows, u32 width) {
    scatter_add(to, from, index, rows, width);
}
KERNEL __launch_bounds__(256) scatter_add_rows_bf16(float *to, const bf16 *from, const u32 *index, u32 rows, u32 width) {
    scatter_add(to, from, index, rows, width);
}
KERNEL __launch_bounds__(256) scatter_add_rows_f16(float *to, const f16 *from, const u32 *index, u32 rows, u32 width) {
    scatter_add(to, from, index, rows, width);
}

// Four words of a counter, Philox4x32-10, Salmon et al. 2011, https://doi.org/10.1145/2063384.2063405.
INLINE void philox(u32 (&x)[4], u32 k0, u32 k1) {
#pragma unroll
    for (int round = 0; round < 10; round++) {
        u32 a_high = __umulhi(x[0], 0xD2511F53u), a = x[0] * 0xD2511F53u;
        u32 b_high = __umulhi(x[2], 0xCD9E8D57u), b = x[2] * 0xCD9E8D57u;
        u32 next[4] = {b_high ^ x[1] ^ k0, b, a_high ^ x[3] ^ k1, a};
        for (int i = 0; i < 4; i++)
            x[i] = next[i];
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
}

// Where a row's random numbers come from: keys of (seed, step), which use it is, sample and place of each row.
struct Noise {
    u32 k0, k1, site;
    const u32 *samples, *positions;
};

// Calls f(column, u) for the columns of this block's row, u uniform in [0, 1). Word g of counter 16 b + i is of column
// 64 b + 16 g + i, the order of the CPU's registers.
template <class F> INLINE void each_uniform(const Noise &n, u32 width, F f) {
    u32 row = blockIdx.x;
    for (u32 counter = threadIdx.x; counter / 16 * 64 < width; counter += blockDim.x) {
        u32 words[4] = {counter, n.positions[row], n.samples[row], n.site};
        philox(words, n.k0, n.k1);
#pragma unroll
        for (u32 g = 0; g < 4; g++) {
            u32 column = counter / 16 * 64 + g * 16 + counter % 16;
            if (column < width)
                f((u64)row * width + column, (float)(words[g] >> 8) * (1.0f / 16777216.0f));
        }
    }
}

// y = x factor where an element is kept, 0 where it is dropped, with probability p; a block a row.
#define NOISE(T, NAME)                                                                                                  \
    KERNEL dropout_##NAME(const T *x, T *y, u32 width, float p, float factor, Noise n) {                                \
        each_uniform(n, width, [=](u64 i, float u) { put(y[i], get(x[i]) * (u < p ? 0.0f : factor)); });                \
    }                                                                                                                   \
    KERNEL embedding_noise_##NAME(T *x, u32 width, float alpha, const u32 *lengths, Noise n) {                          \
        float bound = __fdiv_rn(alpha, __fsqrt_rn((float)lengths[blockIdx.x] * (float)width));                          \
        each_uniform(n, width, [=](u64 i, float u) {                                                                    \
            put(x[i], __fadd_rn(get(x[i]), __fmul_rn(bound, __fsub_rn(2.0f * u, 1.0f))));                               \
        });                                                                                                             \
    }
NOISE(float, f32)
NOISE(bf16, bf16)
NOISE(f16, f16)
