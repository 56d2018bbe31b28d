// Rotary positions, Su et al. 2021, https://arxiv.org/abs/2104.09864, halves paired as Hugging Face's `rotate_half` does, alone
// and with the norm of each head before it (Qwen3). A warp has a head of a token; blocks of 8 warps.

// x `[rows, heads * head_dim]` in place, cos and sin `[rows, head_dim / 2]`; sign -1 rotates back.
template <class T>
INLINE void rotate(T *x, const float *cos, const float *sin, u32 rows, u32 heads, u32 head_dim, float sign) {
    u64 head = (u64)blockIdx.x * blockDim.y + threadIdx.y;
    if (head >= (u64)rows * heads)
        return;
    u32 half = head_dim / 2;
    u64 row = head / heads;
    x += head * head_dim;
    for (u32 i = threadIdx.x; i < half; i += 32) {
        float a = get(x[i]), b = get(x[half + i]);
        float c = cos[row * half + i], s = sign * sin[row * half + i];
        put(x[i], __fsub_rn(__fmul_rn(a, c), __fmul_rn(b, s)));
        put(x[half + i], __fadd_rn(__fmul_rn(b, c), __fmul_rn(a, s)));
    }
}
KERNEL rope_f32(float *x, const float *cos, const float *sin, u32 rows, u32 heads, u32 head_dim, float sign) {
    rotate(x, cos, sin, rows, heads, head_dim, sign);
}
KERNEL rope_bf16(bf16 *x, const float *cos, const float *sin, u32 rows, u32 heads, u32 head_dim, float sign) {
    rotate(x, cos, sin, rows, heads, head_dim, sign);
}
KERNEL rope_f16(f16 *x, const float *cos, const float *sin, u32 rows, u32 heads, u32 head_dim, float sign) {
    rotate(x, cos, sin, rows, heads, head_dim, sign);
}

// Pairs of a head that a lane has: head_dim is at most 256.
constexpr int PAIRS = 4;

// y = rotate(norm(x)), the norm rounded to T in between as it is where the two run alone; rstd `[rows * heads]`.
template <class T, class W>
INLINE void norm_rotate(const T *x, const W *w, float eps, const float *cos, const float *sin, T *y, float *rstd, u32 rows,
                        u32 heads, u32 head_dim) {
    u64 head = (u64)blockIdx.x * blockDim.y + threadIdx.y;
    if (head >= (u64)rows * heads)
        return;
    u32 half = head_dim / 2, lane = threadIdx.x;
    u64 row = head / heads;
    x += head * head_dim;
    y += head * head_dim;
    float a[PAIRS], b[PAIRS], squares = 0;
#pragma unroll
    for (int k = 0; k < PAIRS; k++) {
        u32 i = lane + 32 * k;
        a[k] = i < half ? get(x[i]) : 0;
        b[k] = i < half ? get(x[half + i]) : 0;
        squares += a[k] * a[k] + b[k] * b[k];
    }
    float r = 1.0f / sqrtf(warp_sum(squares) / (float)head_dim + eps);
    if (lane == 0)
        rstd[head] = r;
#pragma unroll
    for (int k = 0; k < PAIRS; k++) {
        u32 i = lane + 32 * k;
        if (i < half) {
            float p = rounded<T>(a[k] * r * get(w[i])), q = rounded<T>(b[k] * r * get(w[half + i]));
            float c = cos[row * half + i], s = sin[row * half + i];
            put(y[i], __fsub_rn(__fmul_rn(p, c), __fmul_rn(q, s)));
            put(y[half + i], __fadd_rn(__fmul_rn(q, c), __fmul_rn(p, s)));
        }
    }
}

// From dy the gradient of x, and of w the sum over this block's heads, `parts[blockIdx.x, head_dim]`, if `parts` isn't null.
// A warp takes the heads first + threadIdx.y, + 8, ... of its block's `step`; the warps' sums are added in order.
template <class T, class W>
INLINE void norm_rotate_back(const T *x, const W *w, const float *rstd, const float *cos, const float *sin, const T *dy,
                             T *dx, float *parts, u32 rows, u32 heads, u32 head_dim, u32 step) {
    __shared__ float sums[8][256];
    u32 half = head_dim / 2, lane = threadIdx.x;
    u64 first = (u64)blockIdx.x * step, last = min(first + step, (u64)rows * heads);
    float da[PAIRS] = {}, db[PAIRS] = {};
    for (u64 head = first + threadIdx.y; head < last; head += blockDim.y) {
        u64 row = head / heads, at = head * head_dim;
        float r = rstd[head], dot = 0;
        float a[PAIRS], b[PAIRS], ga[PAIRS], gb[PAIRS];
#pragma unroll
        for (int k = 0; k < PAIRS; k++) {
            u32 i = lane + 32 * k;
            bool in = i < half;
            a[k] = in ? get(x[at + i]) : 0;
            b[k] = in ? get(x[at + half + i]) : 0;
            float p = in ? get(dy[at + i]) : 0, q = in ? get(dy[at + half + i]) : 0;
            float c = in ? cos[row * half + i] : 0, s = in ? -sin[row * half + i] : 0;
            ga[k] = rounded<T>(__fsub_rn(__fmul_rn(p, c), __fmul_rn(q, s)));
            gb[k] = rounded<T>(__fadd_rn(__fmul_rn(q, c), __fmul_rn(p, s)));
            da[k] += ga[k] * (a[k] * r);
            db[k] += gb[k] * (b[k] * r);
            if (in)
                dot += a[k] * ga[k] * get(w[i]) + b[k] * gb[k] * get(w[half + i]);
        }
        float pull = r * r * (warp_sum(dot) / (float)head_dim);
#pragma unroll
        for (int k = 0; k < PAIRS; k++) {
            u32 i = lane + 32 * k;
            if (i < half) {
                put(dx[at + i], r * (get(w[i]) * ga[k] - a[k] * pull));
                put(dx[at + half + i], r * (get(w[half + i]) * gb[k] - b[k] * pull));
            }
        }
    }
    if (parts == 0)
        return;
#pragma unroll
    for (int k = 0; k < PAIRS; k++) {
        u32 i = lane + 32 * k;
        if (i < half) {
            sums[threadIdx.y][i] = da[k];
            sums[threadIdx.y][half + i] = db[k];
        }
    }
    __syncthreads();
    for (u32 i = threadIdx.y * 32 + lane; i < head_dim; i += 256) {
        float sum = 0;
        for (int warp = 0; warp < 8; warp++)
            sum += sums[warp][i];
        parts[(u64)blockIdx.x * head_dim + i] = sum;
    }
}

#define NORM_ROPE(T, W, NAME)                                                                                           \
    KERNEL __launch_bounds__(256) norm_rope_##NAME(const T *x, const W *w, float eps, const float *cos,                 \
                                                   const float *sin, T *y, float *rstd, u32 rows, u32 heads,            \
                                                   u32 head_dim) {                                                      \
        norm_rotate(x, w, eps, cos, sin, y, rstd, rows, heads, head_dim);                                               \
    }                                                                                                                   \
    KERNEL __launch_bounds__(256)                                                                                       \
        norm_rope_backward_##NAME(const T *x, const W *w, const float *rstd, const float *cos, const float *sin,        \
                                  const T *dy, T *dx, float *parts, u32 rows, u32 heads, u32 head_dim, u32 step) {      \
        norm_rotate_back(x, w, rstd, cos, sin, dy, dx, parts, rows, heads, head_dim, step);                             \
    }
NORM_ROPE(float, float, f32_f32)
NORM_ROPE(bf16, bf16, bf16_bf16)
NORM_ROPE(bf16, float, bf16_f32)
NORM_ROPE(f16, f16, f16_f16)
NORM_ROPE(f16, float, f16_f32)
