// Mixtures of experts around their products: routing, the order of rows by expert, weighted sums, and their gradients. No host
// looks at a count: numbers of rows are fixed by tokens and experts of a token, and what depends on the choice stays here. No
// atomics: every sum and every place has one order.

// The larger of two, the earlier of equals.
struct Pick {
    float value;
    u32 at;
};
INLINE Pick better(Pick a, Pick b) { return b.value > a.value || (b.value == a.value && b.at < a.at) ? b : a; }

// Softmax over at most 1024 experts in f32, `probabilities[token, experts]`, and the `top_k` largest of a token, the heaviest
// first and of equal ones the lower number; what isn't a number comes last. With `normalize` weights are divided by their sum.
// A warp has a token; blocks of (32, 4).
KERNEL __launch_bounds__(128) route_choose(const float *logits, float *probabilities, float *weights, u32 *chosen, u32 tokens,
                                           u32 experts, u32 top_k, u32 normalize) {
    u32 token = blockIdx.x * blockDim.y + threadIdx.y, lane = threadIdx.x;
    if (token >= tokens)
        return;
    logits += (u64)token * experts;
    float *p = probabilities + (u64)token * experts;
    float top = __uint_as_float(0xff800000u), sum = 0;
    for (u32 e = lane; e < experts; e += 32)
        top = fmaxf(top, logits[e]);
    top = warp_max(top);
    for (u32 e = lane; e < experts; e += 32) {
        float x = exp_near(logits[e] - top);
        p[e] = x;
        sum += x;
    }
    sum = warp_sum(sum);
    for (u32 e = lane; e < experts; e += 32)
        p[e] = __fdiv_rn(p[e], sum);
    weights += (u64)token * top_k;
    chosen += (u64)token * top_k;
    // A bit for each of this lane's experts that is chosen already.
    u32 taken = 0;
    float total = 0;
    for (u32 j = 0; j < top_k; j++) {
        Pick best = {__uint_as_float(0xff800000u), 0xffffffffu};
        for (u32 i = 0; lane + 32 * i < experts; i++) {
            // A maximum with minus infinity takes the place of what isn't a number.
            if (!(taken >> i & 1))
                best = better(best, {fmaxf(p[lane + 32 * i], __uint_as_float(0xff800000u)), lane + 32 * i});
        }
#pragma unroll
        for (int step = 16; step > 0; step >>= 1)
            best = better(best, {__shfl_xor_sync(ALL, best.value, step), __shfl_xor_sync(ALL, best.at, step)});
        if (best.at % 32 == lane) {
            taken |= 1u << best.at / 32;
            chosen[j] = best.at;
            weights[j] = p[best.at];
        }
        total += best.value;
    }
    __syncwarp();
    if (normalize)
        for (u32 j = lane; j < top_k; j += 32)
            weights[j] = __fdiv_rn(weights[j], total);
}

// Adds to a census, `[2, experts]`: how many rows each expert has, and the sum of its probabilities over the tokens, in f64 and
// in one order. Grid x over experts, 32 a block; blocks of (32, 8).
KERNEL __launch_bounds__(256) expert_census(const float *probabilities, const u32 *offsets, float *census, u32 tokens,
                                            u32 experts) {
    __shared__ double parts[8][32];
    u32 e = blockIdx.x * 32 + threadIdx.x;
    double sum = 0;
    if (e < experts)
        for (u32 token = threadIdx.y; token < tokens; token += 8)
            sum += (double)probabilities[(u64)token * experts + e];
    parts[threadIdx.y][threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.y > 0 || e >= experts)
        return;
    for (int i = 1; i < 8; i++)
        sum += parts[i][threadIdx.x];
    census[e] += (float)(offsets[e + 1] - offsets[e]);
    census[experts + e] += (float)sum;
}

// dlogits = p (dp - sum p dp), with dp_j = (dw_j - sum_i dw_i p_i / s) / s for the chosen ones where they were divided by their
// sum s, else dw_j; each expert's price is added to its dp unless `prices` is null. A warp has a token; blocks of (32, 4).
KERNEL __launch_bounds__(128) route_backward(const float *probabilities, const u32 *chosen, const float *dweights,
                                             const float *prices, float *dlogits, u32 tokens, u32 experts, u32 top_k,
                                             u32 normalize) {
    u32 token = blockIdx.x * blockDim.y + threadIdx.y, lane = threadIdx.x;
    if (token >= tokens)
        return;
    const float *p = probabilities + (u64)token * experts, *dw = dweights + (u64)token * top_k;
    float *d = dlogits + (u64)token * experts;
    chosen += (u64)token * top_k;
    float sum = 0, mean = 0, dot = 0;
    for (u32 j = 0; j < top_k; j++) {
        sum += p[chosen[j]];
        mean += dw[j] * p[chosen[j]];
    }
    mean = normalize ? mean / sum : 0;
    sum = normalize ? sum : 1;
    for (u32 j = 0; j < top_k; j++)
        dot += (dw[j] - mean) / sum * p[chosen[j]];
    float priced = 0;
    for (u32 e = lane; prices && e < experts; e += 32)
        priced += prices[e] * p[e];
    dot += warp_sum(priced);
    for (u32 e = lane; e < experts; e += 32)
        d[e] = p[e] * ((prices ? prices[e] : 0) - dot);
    __syncwarp();
    for (u32 j = lane; j < top_k; j += 32)
        d[chosen[j]] += p[chosen[j]] * ((dw[j] - mean) / sum);
}

// Sorting by counting, in three launches. A warp has a stretch of 1024 choices (a block of 32 threads each).
constexpr u32 STRETCH = 1024;

// Calls f(i, expert, rank, count) for the choices of this block's stretch: choice i is the rank-th of its 32 with its expert,
// of which there are count.
template <class F> INLINE void each_choice(const u32 *chosen, u32 choices, F f) {
    u32 first = blockIdx.x * STRETCH, last = min(first + STRETCH, choices);
    for (u32 at = first; at < last; at += 32) {
        u32 i = at + threadIdx.x;
        // Threads without a choice have a number that no expert has.
        u32 expert = i < last ? chosen[i] : 0xffffffffu, same = __match_any_sync(ALL, expert);
        f(i < last, i, expert, __popc(same & ((1u << threadIdx.x) - 1)), __popc(same));
    }
}

// counts[stretch, expert] = choices of the stretch that are the expert.
KERNEL __launch_bounds__(32) expert_counts(const u32 *chosen, u32 *counts, u32 choices, u32 experts) {
    __shared__ u32 own[1024];
    for (u32 e = threadIdx.x; e < experts; e += 32)
        own[e] = 0;
    __syncwarp();
    each_choice(chosen, choices, [&](bool in, u32 i, u32 expert, u32 rank, u32 count) {
        if (in && rank == 0)
            own[expert] += count;
        __syncwarp();
    });
    for (u32 e = threadIdx.x; e < experts; e += 32)
        counts[(u64)blockIdx.x * experts + e] = own[e];
}

// Sum of x of the threads before this one, of a block of 1024.
INLINE u32 before(u32 x) {
    __shared__ u32 parts[32];
    u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32, own = x;
#pragma unroll
    for (int step = 1; step < 32; step <<= 1) {
        u32 other = __shfl_up_sync(ALL, x, step);
        x += lane >= step ? other : 0;
    }
    if (lane == 31)
        parts[warp] = x;
    __syncthreads();
    u32 sum = x - own;
    for (u32 i = 0; i < warp; i++)
        sum += parts[i];
    __syncthreads();
    return sum;
}

// offsets[expert] = where its rows begin, offsets[experts] = all rows; counts become where the stretch's rows of the expert
// begin; tiles has for each stretch of `height` rows of one expert (expert, first row, end of the expert's rows), in order, and
// experts = ~0 for the rest of `most`. One block of 1024.
KERNEL __launch_bounds__(1024) expert_offsets(u32 *counts, u32 *offsets, u32 *tiles, u32 stretches, u32 experts, u32 height,
                                              u32 most) {
    u32 e = threadIdx.x, rows = 0;
    bool in = e < experts;
    for (u32 s = 0; in && s < stretches; s++)
        rows += counts[(u64)s * experts + e];
    u32 begin = before(rows), own = (rows + height - 1) / height, tile = before(own);
    if (in) {
        offsets[e] = begin;
        u32 at = begin;
        for (u32 s = 0; s < stretches; s++) {
            u32 count = counts[(u64)s * experts + e];
            counts[(u64)s * experts + e] = at;
            at += count;
        }
        for (u32 i = 0; i < own; i++) {
            tiles[3 * (tile + i)] = e;
            tiles[3 * (tile + i) + 1] = begin + i * height;
            tiles[3 * (tile + i) + 2] = begin + rows;
        }
    }
    // The last thread has all rows and tiles before it, and no expert unless there are 1024.
    __shared__ u32 used;
    if (e == 1023) {
        offsets[experts] = begin + rows;
        used = tile + own;
    }
    __syncthreads();
    for (u32 i = used + e; i < most; i += 1024)
        tiles[3 * i] = 0xffffffffu;
}

// slots[i] = the sorted row of choice i, sources[slot] = its token: in the order of tokens within an expert. `bases` are what
// `expert_offsets` made of the counts.
KERNEL __launch_bounds__(32) expert_slots(const u32 *chosen, const u32 *bases, u32 *slots, u32 *sources, u32 choices,
                                          u32 experts, u32 top_k) {
    __shared__ u32 next[1024];
    for (u32 e = threadIdx.x; e < experts; e += 32)
        next[e] = bases[(u64)blockIdx.x * experts + e];
    __syncwarp();
    each_choice(chosen, choices, [&](bool in, u32 i, u32 expert, u32 rank, u32 count) {
        u32 slot = in ? next[expert] + rank : 0;
        __syncwarp();
        if (in) {
            slots[i] = slot;
            sources[slot] = i / top_k;
            if (rank == 0)
                next[expert] += count;
        }
        __syncwarp();
    });
}

// Keys of the sorted rows' randomness: the token's sample, and its position times experts plus the expert.
KERNEL expert_noise(const u32 *slots, const u32 *chosen, const u32 *samples, const u32 *positions, u32 *to_samples,
                    u32 *to_positions, u32 choices, u32 top_k, u32 experts) {
    u32 i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= choices)
        return;
    u32 slot = slots[i], token = i / top_k;
    to_samples[slot] = samples[token];
    to_positions[slot] = positions[token] * experts + chosen[i];
}

// y[token] = sum_j weights[token, j] rows[slots[token, j]], added in the order of j and rounded once; without weights each
// counts once. A block of 256 has a token, a thread 16 bytes where rows are multiples of them.
template <class T>
INLINE void combine(const T *rows, const u32 *slots, const float *weights, T *y, u32 width, u32 top_k) {
    constexpr u32 STEP = 16 / sizeof(T);
    u64 token = blockIdx.x;
    slots += token * top_k;
    y += token * width;
    bool vector = aligned(rows) && aligned(y) && width % STEP == 0;
    u32 step = vector ? STEP : 1;
    for (u32 c = threadIdx.x * step; c < width; c += 256 * step) {
        float sum[STEP] = {};
        for (u32 j = 0; j < top_k; j++) {
            float w = weights ? weights[token * top_k + j] : 1.0f;
            const T *row = rows + (u64)slots[j] * width + c;
            if (vector) {
                Pack<T> pack = load(row);
#pragma unroll
                for (int k = 0; k < STEP; k++)
                    sum[k] = __fadd_rn(sum[k], __fmul_rn(w, get(pack.at[k])));
            } else {
                sum[0] = __fadd_rn(sum[0], __fmul_rn(w, get(*row)));
            }
        }
        if (vector) {
            Pack<T> pack;
#pragma unroll
            for (int k = 0; k < STEP; k++)
                put(pack.at[k], sum[k]);
            store(y + c, pack);
        } else {
            put(y[c], sum[0]);
        }
    }
}

// drows[slots[i]] = weights[i] dy[token], dweights[i] = rows[slots[i]] . dy[token]. A warp has a choice; blocks of (32, 8).
template <class T>
INLINE void combine_back(const T *dy, const T *rows, const u32 *slots, const float *weights, T *drows, float *dweights,
                         u32 choices, u32 width, u32 top_k) {
    u32 i = blockIdx.x * blockDim.y + threadIdx.y;
    if (i >= choices)
        return;
    float w = weights[i], dot = 0;
    dy += (u64)(i / top_k) * width;
    u64 at = (u64)slots[i] * width;
    for (u32 c = threadIdx.x; c < width; c += 32) {
        float d = get(dy[c]);
        dot += d * get(rows[at + c]);
        put(drows[at + c], w * d);
    }
    dot = warp_sum(dot);
    if (threadIdx.x == 0)
        dweights[i] = dot;
}

// out = y + sigmoid(gate[row]) z. A warp has a row; blocks of (32, 8).
template <class T> INLINE void gated(const T *y, const T *z, const T *gate, T *out, u32 rows, u32 width) {
    u32 row = blockIdx.x * blockDim.y + threadIdx.y;
    if (row >= rows)
        return;
    float s = sigmoid(get(gate[row]));
    for (u32 c = threadIdx.x; c < width; c += 32) {
        u64 i = (u64)row * width + c;
        put(out[i], get(y[i]) + s * get(z[i]));
    }
}

// dz = s d, dgate = s (1 - s) sum d z.
template <class T> INLINE void gated_back(const T *d, const T *z, const T *gate, T *dz, T *dgate, u32 rows, u32 width) {
    u32 row = blockIdx.x * blockDim.y + threadIdx.y;
    if (row >= rows)
        return;
    float s = sigmoid(get(gate[row])), dot = 0;
    for (u32 c = threadIdx.x; c < width; c += 32) {
        u64 i = (u64)row * width + c;
        dot += get(d[i]) * get(z[i]);
        put(dz[i], s * get(d[i]));
    }
    dot = warp_sum(dot);
    if (threadIdx.x == 0)
        put(dgate[row], s * (1.0f - s) * dot);
}

#define EXPERTS(T, NAME)                                                                                                \
    KERNEL __launch_bounds__(256)                                                                                       \
        combine_##NAME(const T *rows, const u32 *slots, const float *weights, T *y, u32 width, u32 top_k) {             \
        combine(rows, slots, weights, y, width, top_k);                                                                 \
    }                                                                                                                   \
    KERNEL __launch_bounds__(256)                                                                                       \
        combine_backward_##NAME(const T *dy, const T *rows, const u32 *slots, const float *weights, T *drows,           \
                                float *dweights, u32 choices, u32 width, u32 top_k) {                                   \
        combine_back(dy, rows, slots, weights, drows, dweights, choices, width, top_k);                                 \
    }                                                                                                                   \
    KERNEL __launch_bounds__(256)                                                                                       \
        add_gated_##NAME(const T *y, const T *z, const T *gate, T *out, u32 rows, u32 width) {                          \
        gated(y, z, gate, out, rows, width);                                                                            \
    }                                                                                                                   \
    KERNEL __launch_bounds__(256) add_gated_backward_##NAME(const T *d, const T *z, const T *gate, T *dz, T *dgate,     \
                                                            u32 rows, u32 width) {                                      \
        gated_back(d, z, gate, dz, dgate, rows, width);                                                                 \
    }
EXPERTS(float, f32)
EXPERTS(bf16, bf16)
EXPERTS(f16, f16)
