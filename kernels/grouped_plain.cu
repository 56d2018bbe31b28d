// Products of rows sorted by expert with each expert's own matrix, without matrix instructions: of f32, of mixed types
// (a low-rank update in f32 beside activations in bf16), and of sizes that `grouped.cu` doesn't take. Everything is multiplied
// and added in f32, the reduction in its order.
//
// A block of 256 threads has 128 rows and 64 columns, a thread 8 x 4; the reduction passes in steps of 16.

constexpr int ROWS = 128, COLUMNS = 64, STEP = 16;

// alpha a op(b): a `[rows, k]`; b an expert's matrix, `[n, k]` where `trans`, else `[k, n]`.
template <class A, class B> struct Term {
    const A *a;
    const B *b;
    u32 k;
    float alpha;
};

struct Tiles {
    // A column more, so that a warp's stores down a column go to different banks.
    float a[STEP][ROWS + 4], b[STEP][COLUMNS + 4];
};

// Loads N elements of the reduction's `step`: element (k, i) is at from[k * down + i * across], zero from `length` and `count`
// on. Neighbouring threads take neighbours in memory.
template <int N, class T, int WIDTH>
INLINE void fill(float (&to)[STEP][WIDTH], const T *from, u64 down, u64 across, u32 first, u32 length, int count) {
#pragma unroll
    for (int j = 0; j < N * STEP / 256; j++) {
        u32 at = j * 256 + threadIdx.x;
        u32 k = down == 1 ? at % STEP : at / N, i = down == 1 ? at / STEP : at % N;
        to[k][i] = first + k < length && (int)i < count ? get(from[(first + k) * down + i * across]) : 0;
    }
}

// sums = the product of a tile of a and one of b.
template <class A, class B>
INLINE void sweep(float (&sums)[8][4], Tiles &tiles, const A *a, u64 a_down, u64 a_across, const B *b, u64 b_down,
                  u64 b_across, u32 length, int rows, int columns) {
    u32 x = threadIdx.x % 16 * 4, y = threadIdx.x / 16 * 8;
    for (auto &row : sums)
        for (float &s : row)
            s = 0;
    for (u32 first = 0; first < length; first += STEP) {
        fill<ROWS>(tiles.a, a, a_down, a_across, first, length, rows);
        fill<COLUMNS>(tiles.b, b, b_down, b_across, first, length, columns);
        __syncthreads();
#pragma unroll 4
        for (int k = 0; k < STEP; k++) {
            float4 low = *(float4 *)&tiles.a[k][y], high = *(float4 *)&tiles.a[k][y + 4], right = *(float4 *)&tiles.b[k][x];
            float u[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
            float v[4] = {right.x, right.y, right.z, right.w};
#pragma unroll
            for (int i = 0; i < 8; i++)
#pragma unroll
                for (int j = 0; j < 4; j++)
                    sums[i][j] = fmaf(u[i], v[j], sums[i][j]);
        }
        __syncthreads();
    }
}

// A block's part of c.
struct Part {
    u32 expert, begin, column, n;
    int rows, columns;
    u32 trans;
};
template <class A, class B> INLINE void product(float (&sums)[8][4], Tiles &tiles, const Term<A, B> &term, const Part &p) {
    u64 k = term.k, down = p.trans ? 1 : p.n, across = p.trans ? k : 1;
    const B *b = term.b + p.expert * (u64)p.n * k + p.column * across;
    sweep(sums, tiles, term.a + p.begin * k, 1, k, b, down, across, term.k, p.rows, p.columns);
}

// c[rows of e] = beta c + first (+ second), c `[rows, n]`; second's a is null where there is none. Grid x over columns, y over
// tiles.
template <class A, class B, class C>
INLINE void grouped(const Term<A, B> &first, const Term<float, float> &second, C *c, u32 n, float beta, u32 trans,
                    const u32 *stretches) {
    __shared__ Tiles tiles;
    u32 expert = stretches[3 * blockIdx.y], begin = stretches[3 * blockIdx.y + 1], column = blockIdx.x * COLUMNS;
    if (expert == 0xffffffffu)
        return;
    int rows = min((int)(stretches[3 * blockIdx.y + 2] - begin), ROWS), columns = min((int)(n - column), COLUMNS);
    float sums[8][4], low[8][4] = {};
    Part part = {expert, begin, column, n, rows, columns, trans};
    if (second.a)
        product(low, tiles, second, part);
    product(sums, tiles, first, part);
    u32 x = threadIdx.x % 16 * 4, y = threadIdx.x / 16 * 8;
#pragma unroll
    for (int i = 0; i < 8; i++)
#pragma unroll
        for (int j = 0; j < 4; j++) {
            if ((int)y + i >= rows || (int)x + j >= columns)
                continue;
            C *to = c + (u64)(begin + y + i) * n + column + x + j;
            float old = beta != 0 ? beta * get(*to) : 0;
            put(*to, old + (first.alpha * sums[i][j] + second.alpha * low[i][j]));
        }
}

#define GROUPED(A, A_NAME, B, B_NAME, C, C_NAME)                                                                        \
    KERNEL __launch_bounds__(256, 2) grouped_plain_##A_NAME##_##B_NAME##_##C_NAME(                                      \
        Term<A, B> first, Term<float, float> second, C *c, u32 n, float beta, u32 trans, const u32 *tiles) {            \
        grouped(first, second, c, n, beta, trans, tiles);                                                               \
    }
GROUPED(float, f32, float, f32, float, f32)
GROUPED(bf16, bf16, bf16, bf16, bf16, bf16)
GROUPED(bf16, bf16, float, f32, float, f32)
GROUPED(float, f32, float, f32, bf16, bf16)
GROUPED(f16, f16, f16, f16, f16, f16)
GROUPED(f16, f16, float, f32, float, f32)
GROUPED(float, f32, float, f32, f16, f16)

// c[e] += alpha a[rows of e]' b[rows of e], a `[rows, m]`, b `[rows, n]`, c `[experts, m, n]`. Grid x over columns, y over rows
// of c, z over experts.
template <class A, class B>
INLINE void outer(const A *a, const B *b, float *c, u32 m, u32 n, float alpha, const u32 *offsets) {
    __shared__ Tiles tiles;
    u32 expert = blockIdx.z, begin = offsets[expert], length = offsets[expert + 1] - begin;
    u32 row = blockIdx.y * ROWS, column = blockIdx.x * COLUMNS;
    if (length == 0)
        return;
    int rows = min((int)(m - row), ROWS), columns = min((int)(n - column), COLUMNS);
    float sums[8][4];
    sweep(sums, tiles, a + (u64)begin * m + row, m, 1, b + (u64)begin * n + column, n, 1, length, rows, columns);
    u32 x = threadIdx.x % 16 * 4, y = threadIdx.x / 16 * 8;
#pragma unroll
    for (int i = 0; i < 8; i++)
#pragma unroll
        for (int j = 0; j < 4; j++)
            if ((int)y + i < rows && (int)x + j < columns)
                c[((u64)expert * m + row + y + i) * n + column + x + j] += alpha * sums[i][j];
}

#define OUTER(A, A_NAME, B, B_NAME)                                                                                     \
    KERNEL __launch_bounds__(256, 2) grouped_outer_plain_##A_NAME##_##B_NAME(const A *a, const B *b, float *c, u32 m,   \
                                                                             u32 n, float alpha, const u32 *offsets) {  \
        outer(a, b, c, m, n, alpha, offsets);                                                                           \
    }
OUTER(float, f32, float, f32)
OUTER(bf16, bf16, bf16, bf16)
OUTER(bf16, bf16, float, f32)
OUTER(float, f32, bf16, bf16)
OUTER(f16, f16, f16, f16)
OUTER(f16, f16, float, f32)
OUTER(float, f32, f16, f16)
