// DoRA, Liu et al. 2024, https://arxiv.org/abs/2402.09353: norms of a weight's rows, columns rescaled, the magnitudes' gradient.

// norms[row] = Euclidean norm; a block of 256 a row.
KERNEL __launch_bounds__(256) row_norms(float *norms, const float *x, u32 width) {
    float squares = 0;
    for (u32 i = threadIdx.x; i < width; i += 256) {
        float v = x[(u64)blockIdx.x * width + i];
        squares += v * v;
    }
    squares = row_sum(squares);
    if (threadIdx.x == 0)
        norms[blockIdx.x] = sqrtf(squares);
}

// to = a / b.
KERNEL quotients(float *to, const float *a, const float *b, u32 n) {
    u32 i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n)
        to[i] = __fdiv_rn(a[i], b[i]);
}

// y = x factors + bias, each rounded once; either may be null. Grid x over columns, y over rows.
template <class T, class B>
INLINE void scale_columns(const T *x, const float *factors, const B *bias, T *y, u32 rows, u32 width) {
    u32 column = blockIdx.x * blockDim.x + threadIdx.x;
    if (column >= width)
        return;
    float factor = factors ? factors[column] : 1, add = bias ? get(bias[column]) : 0;
    for (u32 row = blockIdx.y; row < rows; row += gridDim.y) {
        u64 i = (u64)row * width + column;
        float scaled = rounded<T>(get(x[i]) * factor);
        put(y[i], bias ? scaled + add : scaled);
    }
}

// x[row] *= factors[row], rounded once. A block of 256 a row.
KERNEL __launch_bounds__(256) scale_rows_f32(float *x, const float *factors, u32 rows, u32 width) {
    u32 row = blockIdx.x;
    float factor = factors[row];
    for (u32 i = threadIdx.x; i < width; i += 256)
        x[(u64)row * width + i] *= factor;
}

// parts[y, column] = sum of x y over `step` rows.
template <class T> INLINE void dots(float *parts, const T *x, const T *y, u32 rows, u32 width, u32 step) {
    u32 column = blockIdx.x * blockDim.x + threadIdx.x;
    if (column >= width)
        return;
    float sum = 0;
    for (u32 row = blockIdx.y * step; row < min((blockIdx.y + 1) * step, rows); row++)
        sum += get(x[(u64)row * width + column]) * get(y[(u64)row * width + column]);
    parts[(u64)blockIdx.y * width + column] = sum;
}

// sums += the parts, in order, divided by `norms`.
KERNEL add_parts_divided(float *sums, const float *parts, const float *norms, u32 count, u32 width) {
    u32 column = blockIdx.x * blockDim.x + threadIdx.x;
    if (column >= width)
        return;
    float sum = 0;
    for (u32 i = 0; i < count; i++)
        sum += parts[(u64)i * width + column];
    sums[column] += sum / norms[column];
}

#define COLUMNS(T, NAME)                                                                                                \
    KERNEL column_dots_##NAME(float *parts, const T *x, const T *y, u32 rows, u32 width, u32 step) {                    \
        dots(parts, x, y, rows, width, step);                                                                           \
    }
COLUMNS(float, f32)
COLUMNS(bf16, bf16)
COLUMNS(f16, f16)
#define SCALE_COLUMNS(T, B, NAME)                                                                                       \
    KERNEL scale_columns_##NAME(const T *x, const float *factors, const B *bias, T *y, u32 rows, u32 width) {           \
        scale_columns(x, factors, bias, y, rows, width);                                                                \
    }
SCALE_COLUMNS(float, float, f32_f32)
SCALE_COLUMNS(bf16, bf16, bf16_bf16)
SCALE_COLUMNS(bf16, float, bf16_f32)
SCALE_COLUMNS(f16, f16, f16_f16)
SCALE_COLUMNS(f16, float, f16_f32)
