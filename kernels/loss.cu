// Cross-entropy of rows of logits with label smoothing, its gradient, and the likeliest token. A block of 256 has a row.

struct Largest {
    float value;
    u32 at;
};

// The larger of two, the earlier of equals; NaN is never larger.
INLINE Largest larger(Largest a, Largest b) {
    bool second = b.value > a.value || (b.value == a.value && b.at < a.at);
    return second ? b : a;
}

INLINE Largest row_largest(const float *z, u32 vocab) {
    __shared__ Largest parts[8];
    Largest best = {__uint_as_float(0xff800000u), 0xffffffffu};
    for (u32 i = threadIdx.x; i < vocab; i += 256)
        best = larger(best, {z[i], i});
#pragma unroll
    for (int step = 16; step > 0; step >>= 1) {
        Largest other = {__shfl_xor_sync(ALL, best.value, step), __shfl_xor_sync(ALL, best.at, step)};
        best = larger(best, other);
    }
    if (threadIdx.x % 32 == 0)
        parts[threadIdx.x / 32] = best;
    __syncthreads();
    best = parts[0];
    for (int i = 1; i < 8; i++)
        best = larger(best, parts[i]);
    return best;
}

// out[row] = the first index of the largest logit.
KERNEL __launch_bounds__(256) argmax(const float *logits, u32 *out, u32 vocab) {
    Largest best = row_largest(logits + (u64)blockIdx.x * vocab, vocab);
    if (threadIdx.x == 0)
        out[blockIdx.x] = best.at;
}

// Sums of both over the block, in every thread.
INLINE void block_sums(double &a, double &b) {
    __shared__ double parts[8][2];
    a = warp_sum(a);
    b = warp_sum(b);
    if (threadIdx.x % 32 == 0) {
        parts[threadIdx.x / 32][0] = a;
        parts[threadIdx.x / 32][1] = b;
    }
    __syncthreads();
    a = b = 0;
    for (int i = 0; i < 8; i++) {
        a += parts[i][0];
        b += parts[i][1];
    }
}

// losses[row] = (1 - e) nll + e mean(-log p), then nll, negative (-0 too) where the label has the largest logit. dz, if not
// null, becomes scale (p - (1 - e) [label] - e / vocab); it may be the logits themselves.
template <class T>
INLINE void cross_entropy(const float *logits, T *dz, const int *labels, float *losses, u32 vocab, float scale,
                          float smoothing) {
    u64 row = blockIdx.x;
    const float *z = logits + row * vocab;
    u32 label = (u32)labels[row];
    float top = row_largest(z, vocab).value, chosen = z[label];
    double total = 0, plain = 0;
    for (u32 i = threadIdx.x; i < vocab; i += 256) {
        total += exp_near(z[i] - top);
        plain += z[i];
    }
    block_sums(total, plain);
    if (threadIdx.x == 0) {
        // A double's logarithm by a float's: its table would be global memory, and this is as near as the result can tell.
        float high = (float)total;
        double lse = top + ((double)logf(high) + (total - high) / high), e = smoothing, nll = lse - chosen;
        losses[2 * row] = (float)((1.0 - e) * nll + (smoothing == 0.0f ? 0.0 : e * (lse - plain / vocab)));
        float shown = (float)fmax(nll, 0.0);
        losses[2 * row + 1] = chosen >= top ? -shown : shown;
    }
    if (dz == 0)
        return;
    float factor = (float)(scale / total), spread = (float)((double)scale * smoothing / vocab);
    // All have read the chosen logit and passed a barrier since, so the gradients may take the logits' place.
    for (u32 i = threadIdx.x; i < vocab; i += 256) {
        float g = exp_near(z[i] - top) * factor - spread;
        put(dz[row * vocab + i], i == label ? g - scale * (1.0f - smoothing) : g);
    }
}
KERNEL __launch_bounds__(256) cross_entropy_f32(const float *logits, float *dz, const int *labels, float *losses, u32 vocab,
                                                float scale, float smoothing) {
    cross_entropy(logits, dz, labels, losses, vocab, scale, smoothing);
}
KERNEL __launch_bounds__(256) cross_entropy_bf16(const float *logits, bf16 *dz, const int *labels, float *losses, u32 vocab,
                                                 float scale, float smoothing) {
    cross_entropy(logits, dz, labels, losses, vocab, scale, smoothing);
}
KERNEL __launch_bounds__(256) cross_entropy_f16(const float *logits, f16 *dz, const int *labels, float *losses, u32 vocab,
                                                float scale, float smoothing) {
    cross_entropy(logits, dz, labels, losses, vocab, scale, smoothing);
}

// Adds the losses of a chunk: loss += scale sum of the first, stats += sum of nll and number of right guesses. One warp.
KERNEL __launch_bounds__(32) count_losses(const float *losses, u32 rows, float scale, float *loss, float *stats) {
    double sum = 0, nll = 0, right = 0;
    for (u32 row = threadIdx.x; row < rows; row += 32) {
        float own = losses[2 * row + 1];
        sum += losses[2 * row];
        nll += fabsf(own);
        right += __float_as_uint(own) >> 31;
    }
    sum = warp_sum(sum);
    nll = warp_sum(nll);
    right = warp_sum(right);
    if (threadIdx.x == 0) {
        *loss += (float)sum * scale;
        stats[0] += (float)nll;
        stats[1] += (float)right;
    }
}
