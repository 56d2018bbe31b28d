// AdamW over flat ranges in torch's order of operations, each rounded as the CPU kernel rounds it, and the norm of gradients.

struct Factors {
    // grad scales the gradients; keep = 1 - rate decay; rest = 1 - beta; root = sqrt(1 - beta2^t); rate = lr / (1 - beta1^t).
    float grad, keep, beta1, rest1, beta2, rest2, root, eps, rate;
};

INLINE bool finite(float x) { return fabsf(x) < __uint_as_float(0x7f800000u); }

// The weight after the step. `clip` holds a further factor of the gradients where it isn't null: no host reads it.
INLINE float update(float p, float g, float &m, float &v, const Factors &f, const float *clip) {
    g = __fmul_rn(g, f.grad);
    if (clip)
        g = __fmul_rn(g, *clip);
    float kept = __fmul_rn(p, f.keep);
    m = __fadd_rn(__fmul_rn(f.beta1, m), __fmul_rn(f.rest1, g));
    v = __fadd_rn(__fmul_rn(f.beta2, v), __fmul_rn(__fmul_rn(f.rest2, g), g));
    float denominator = __fadd_rn(__fdiv_rn(__fsqrt_rn(v), f.root), f.eps);
    return __fsub_rn(kept, __fmul_rn(f.rate, __fdiv_rn(m, denominator)));
}

// Four elements a thread would save little: the divisions hide behind memory.
template <class T>
INLINE void step(T *weight, float *master, const float *grad, float *m, float *v, u64 n, const Factors &f,
                 const float *clip) {
    // Gradients that aren't finite: everything stays as it is.
    if (clip && !finite(*clip))
        return;
    u64 stride = (u64)gridDim.x * blockDim.x;
    for (u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += stride) {
        float first = m[i], second = v[i];
        float p = update(master ? master[i] : get(weight[i]), grad[i], first, second, f, clip);
        m[i] = first;
        v[i] = second;
        if (master)
            master[i] = p;
        put(weight[i], p);
    }
}
// `master` is null where the weights themselves are all there is.
KERNEL adamw_f32(float *weight, float *master, const float *grad, float *m, float *v, u64 n, Factors f, const float *clip) {
    step(weight, master, grad, m, v, n, f, clip);
}
KERNEL adamw_bf16(bf16 *weight, float *master, const float *grad, float *m, float *v, u64 n, Factors f,
                  const float *clip) {
    step(weight, master, grad, m, v, n, f, clip);
}
KERNEL adamw_f16(f16 *weight, float *master, const float *grad, float *m, float *v, u64 n, Factors f, const float *clip) {
    step(weight, master, grad, m, v, n, f, clip);
}

// Sum over a block of 256 threads in f64, in thread 0.
INLINE double block_sum(double x) {
    __shared__ double parts[8];
    x = warp_sum(x);
    if (threadIdx.x % 32 == 0)
        parts[threadIdx.x / 32] = x;
    __syncthreads();
    double sum = 0;
    for (int i = 0; i < 8; i++)
        sum += parts[i];
    return sum;
}

// parts[b] = sum of squares of the elements b * 65536 ..; a sum that isn't finite means an element that isn't.
template <class T> INLINE void squares(double *parts, const T *x, u64 n) {
    u64 first = (u64)blockIdx.x << 16, last = min(first + 65536, n);
    double sum = 0;
    for (u64 i = first + threadIdx.x; i < last; i += 256) {
        double v = get(x[i]);
        sum += v * v;
    }
    sum = block_sum(sum);
    if (threadIdx.x == 0)
        parts[blockIdx.x] = sum;
}
KERNEL __launch_bounds__(256) squares_f32(double *parts, const float *x, u64 n) { squares(parts, x, n); }
KERNEL __launch_bounds__(256) squares_bf16(double *parts, const bf16 *x, u64 n) { squares(parts, x, n); }
KERNEL __launch_bounds__(256) squares_f16(double *parts, const f16 *x, u64 n) { squares(parts, x, n); }

// sum += the parts; one block.
KERNEL __launch_bounds__(256) sum_parts(double *sum, const double *parts, u64 count) {
    double own = 0;
    for (u64 i = threadIdx.x; i < count; i += 256)
        own += parts[i];
    own = block_sum(own);
    if (threadIdx.x == 0)
        *sum += own;
}

// The factor that brings gradients whose squares sum to `sum` to a norm of at most `most` (0: any), the norm times `scale`, the
// inverse of the loss's scale. NaN where the norm or one of the losses isn't finite: then `adamw` does nothing. One thread.
KERNEL clip_factor(float *factor, const double *sum, double scale, double most, const float *losses, u32 count) {
    double norm = sqrt(*sum) * scale;
    double wanted = most > 0 ? most / (norm + 1e-6) : 1.0;
    bool sound = norm < 1.7e308;
    for (u32 i = 0; i < count; i++)
        sound = sound && finite(losses[i]);
    *factor = sound ? (wanted < 1.0 ? (float)wanted : 1.0f) : __uint_as_float(0x7fffffffu);
}
