// RMSNorm, Zhang and Sennrich 2019, https://arxiv.org/abs/1910.07467: y = x r w with r = 1 / sqrt(mean(x^2) + eps), in f32
// inside. A row has blockDim.x threads (32, or all of a block), a block blockDim.y rows (1 where a row has more than 32).

INLINE u32 own_row() { return blockIdx.x * blockDim.y + threadIdx.y; }

template <class T, class W>
INLINE void apply(const T *x, const W *w, float r, T *y, u32 width) {
    for (u32 i = threadIdx.x; i < width; i += blockDim.x)
        put(y[i], get(x[i]) * r * get(w[i]));
}

// Writes y and, for the backward pass, r of each row.
template <class T, class W>
INLINE void forward(const T *x, const W *w, float eps, T *y, float *rstd, u32 rows, u32 width) {
    u32 row = own_row();
    if (row >= rows)
        return;
    x += (u64)row * width;
    float squares = 0;
    for (u32 i = threadIdx.x; i < width; i += blockDim.x) {
        float v = get(x[i]);
        squares += v * v;
    }
    float r = 1.0f / sqrtf(row_sum(squares) / (float)width + eps);
    if (threadIdx.x == 0)
        rstd[row] = r;
    apply(x, w, r, y + (u64)row * width, width);
}

// y again, from the r that `forward` gave.
template <class T, class W> INLINE void again(const T *x, const W *w, const float *rstd, T *y, u32 rows, u32 width) {
    u32 row = own_row();
    if (row < rows)
        apply(x + (u64)row * width, w, rstd[row], y + (u64)row * width, width);
}

// dx = r (w dy - x r^2 mean(w dy x)).
template <class T, class W>
INLINE void backward(const T *x, const W *w, const float *rstd, const T *dy, T *dx, u32 rows, u32 width) {
    u32 row = own_row();
    if (row >= rows)
        return;
    u64 at = (u64)row * width;
    x += at;
    dy += at;
    float dot = 0;
    for (u32 i = threadIdx.x; i < width; i += blockDim.x)
        dot += get(x[i]) * get(dy[i]) * get(w[i]);
    float r = rstd[row];
    float pull = r * r * (row_sum(dot) / (float)width);
    for (u32 i = threadIdx.x; i < width; i += blockDim.x)
        put(dx[at + i], r * (get(w[i]) * get(dy[i]) - get(x[i]) * pull));
}

#define NORM(T, W, NAME)                                                                                                \
    KERNEL rmsnorm_##NAME(const T *x, const W *w, float eps, T *y, float *rstd, u32 rows, u32 width) {                  \
        forward(x, w, eps, y, rstd, rows, width);                                                                       \
    }                                                                                                                   \
    KERNEL rmsnorm_apply_##NAME(const T *x, const W *w, const float *rstd, T *y, u32 rows, u32 width) {                 \
        again(x, w, rstd, y, rows, width);                                                                              \
    }                                                                                                                   \
    KERNEL rmsnorm_backward_##NAME(const T *x, const W *w, const float *rstd, const T *dy, T *dx, u32 rows,             \
                                   u32 width) {                                                                         \
        backward(x, w, rstd, dy, dx, rows, width);                                                                      \
    }
NORM(float, float, f32_f32)
NORM(bf16, bf16, bf16_bf16)
NORM(bf16, float, bf16_f32)
NORM(f16, f16, f16_f16)
NORM(f16, float, f16_f32)

// Sums over rows are taken in two steps of fixed order: parts of `step` rows (grid y), then the parts (`add_parts`).
// A thread has a column.
template <class F> INLINE void column_parts(float *parts, u32 rows, u32 width, u32 step, F f) {
    u32 column = blockIdx.x * blockDim.x + threadIdx.x;
    if (column >= width)
        return;
    u32 first = blockIdx.y * step, last = min(first + step, rows);
    float sum = 0;
    for (u32 row = first; row < last; row++)
        sum += f(row, (u64)row * width + column);
    parts[(u64)blockIdx.y * width + column] = sum;
}

// The weight's gradient: sum over rows of dy x r.
#define NORM_WEIGHT(T, NAME)                                                                                            \
    KERNEL rmsnorm_weight_parts_##NAME(float *parts, const T *x, const T *dy, const float *rstd, u32 rows, u32 width,   \
                                       u32 step) {                                                                      \
        column_parts(parts, rows, width, step,                                                                          \
                     [=](u32 row, u64 i) { return get(dy[i]) * (get(x[i]) * rstd[row]); });                             \
    }                                                                                                                   \
    KERNEL column_parts_##NAME(float *parts, const T *x, u32 rows, u32 width, u32 step) {                               \
        column_parts(parts, rows, width, step, [=](u32 row, u64 i) { return get(x[i]); });                              \
    }
NORM_WEIGHT(float, f32)
NORM_WEIGHT(bf16, bf16)
NORM_WEIGHT(f16, f16)

// sums += the parts, in order.
KERNEL add_parts(float *sums, const float *parts, u32 count, u32 width) {
    u32 column = blockIdx.x * blockDim.x + threadIdx.x;
    if (column >= width)
        return;
    float sum = sums[column];
    for (u32 i = 0; i < count; i++)
        sum += parts[(u64)i * width + column];
    sums[column] = sum;
}
