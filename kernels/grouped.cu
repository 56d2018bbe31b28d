// Products of rows sorted by expert with each expert's own matrix, on matrix instructions with f32 sums: bf16 and f16. An
// ordinary linear layer is the case of one expert. A second product with a matrix of the same expert, the low-rank update, is
// added before the one rounding.
//
// A block has 128 rows of one expert (`tiles`, as `expert_offsets` writes them; blocks beyond the last end at once) and
// COLUMNS columns; the reduction passes in steps of 32 through three buffers that cp.async fills. Threads: 256. Widths are
// multiples of 8 and arrays begin at multiples of 16 bytes; `grouped_plain.cu` takes the rest.

constexpr int STAGES = 3, STEP = 32;

// alpha a op(b): a `[rows, k]`; b an expert's matrix, `[n, k]` where it is read transposed, else `[k, n]`.
template <class T> struct Term {
    const T *a, *b;
    u32 k;
    float alpha;
};

// Begins to load a tile of ROWS x COLUMNS; rows from `rows` on and columns from `columns` on are zeros.
template <int ROWS, int COLUMNS, class T> INLINE void fill(u32 to, const T *from, u32 stride, int rows, int columns) {
    constexpr int CHUNKS = COLUMNS / 8;
#pragma unroll
    for (int i = 0; i < (ROWS * CHUNKS + 255) / 256; i++) {
        u32 at = i * 256 + threadIdx.x, row = at / CHUNKS, chunk = at % CHUNKS;
        if (ROWS * CHUNKS % 256 == 0 || at < ROWS * CHUNKS)
            copy_async(to + place<COLUMNS>(row, chunk), from + (u64)row * stride + chunk * 8,
                       (int)row < rows && (int)chunk * 8 < columns ? 16 : 0);
    }
}

// Where the warps of a block of ROWS x COLUMNS stand: each has OWN_ROWS x OWN_COLUMNS.
template <int ROWS, int COLUMNS> struct Warps {
    static constexpr int ACROSS = ROWS == 128 && COLUMNS == 32 ? 2 : 4, DOWN = 8 / ACROSS;
    static constexpr int OWN_ROWS = ROWS / DOWN, OWN_COLUMNS = COLUMNS / ACROSS;
};

// sums += a b for a step of the reduction; the tiles of a and b lie in shared memory as they lie in theirs: with A_DOWN the
// reduction runs down a's tile, with B_DOWN down b's.
template <class T, int ROWS, int COLUMNS, bool A_DOWN, bool B_DOWN, int M, int N>
INLINE void multiply(float (&sums)[M][N][4], u32 a, u32 b) {
    using W = Warps<ROWS, COLUMNS>;
    constexpr int A_WIDTH = A_DOWN ? ROWS : STEP, B_WIDTH = B_DOWN ? COLUMNS : STEP;
    u32 warp = threadIdx.x / 32, row = warp / W::ACROSS * W::OWN_ROWS, column = warp % W::ACROSS * W::OWN_COLUMNS;
    u32 a_lane = A_DOWN ? right_lane<A_WIDTH>(a) : left_lane<A_WIDTH>(a);
    u32 b_lane = B_DOWN ? left_lane<B_WIDTH>(b) : right_lane<B_WIDTH>(b);
#pragma unroll
    for (int k = 0; k < STEP; k += 16) {
        u32 x[M][4];
#pragma unroll
        for (int m = 0; m < M; m++)
            if (A_DOWN)
                load_transposed(x[m], at<A_WIDTH>(a_lane, k, row + m * 16));
            else
                load_matrix(x[m], at<A_WIDTH>(a_lane, row + m * 16, k));
#pragma unroll
        for (int n = 0; n < N; n += 2) {
            u32 y[4];
            if (B_DOWN)
                load_transposed(y, at<B_WIDTH>(b_lane, k, column + n * 8));
            else
                load_matrix(y, at<B_WIDTH>(b_lane, column + n * 8, k));
#pragma unroll
            for (int m = 0; m < M; m++) {
                mma(sums[m][n], x[m], y[0], y[1], T());
                mma(sums[m][n + 1], x[m], y[2], y[3], T());
            }
        }
    }
}

// sums += the product of a tile of a and one of b over `length` of the reduction. a begins at the tile's first row and column
// of the reduction, b likewise; `rows` and `columns` of the tile are there.
template <class T, int ROWS, int COLUMNS, bool A_DOWN, bool B_DOWN, int M, int N>
INLINE void sweep(float (&sums)[M][N][4], const T *a, u32 a_stride, const T *b, u32 b_stride, u32 length, int rows,
                  int columns) {
    constexpr u32 BYTES = (ROWS + COLUMNS) * STEP * 2;
    u32 memory = shared_address(tile_memory);
    auto fetch = [&](u32 stage, u32 first) {
        u32 to = memory + stage * BYTES;
        int left = (int)length - (int)first;
        if (A_DOWN)
            fill<STEP, ROWS>(to, a + (u64)first * a_stride, a_stride, left, rows);
        else
            fill<ROWS, STEP>(to, a + first, a_stride, rows, left);
        if (B_DOWN)
            fill<STEP, COLUMNS>(to + ROWS * STEP * 2, b + (u64)first * b_stride, b_stride, left, columns);
        else
            fill<COLUMNS, STEP>(to + ROWS * STEP * 2, b + first, b_stride, columns, left);
    };
    // A sweep before this one has been read by all.
    __syncthreads();
#pragma unroll
    for (int stage = 0; stage < STAGES - 1; stage++) {
        if (stage * STEP < length)
            fetch(stage, stage * STEP);
        copy_commit();
    }
    u32 stage = 0;
    for (u32 first = 0; first < length; first += STEP) {
        copy_wait<STAGES - 2>();
        __syncthreads();
        // The buffer that was read before this barrier is free.
        u32 ahead = first + (STAGES - 1) * STEP;
        if (ahead < length)
            fetch(stage == 0 ? STAGES - 1 : stage - 1, ahead);
        copy_commit();
        u32 tile = memory + stage * BYTES;
        multiply<T, ROWS, COLUMNS, A_DOWN, B_DOWN>(sums, tile, tile + ROWS * STEP * 2);
        stage = stage == STAGES - 1 ? 0 : stage + 1;
    }
    copy_wait<0>();
}

// Calls f(row, column, sums[0], sums[1]) for the pairs of neighbouring columns that this thread has.
template <int ROWS, int COLUMNS, int M, int N, class F> INLINE void each_pair(const float (&sums)[M][N][4], F f) {
    using W = Warps<ROWS, COLUMNS>;
    u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    int row = warp / W::ACROSS * W::OWN_ROWS + lane / 4, column = warp % W::ACROSS * W::OWN_COLUMNS + lane % 4 * 2;
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int half = 0; half < 2; half++)
#pragma unroll
            for (int n = 0; n < N; n++)
                f(row + m * 16 + half * 8, column + n * 8, sums[m][n][2 * half], sums[m][n][2 * half + 1]);
}

INLINE float2 pair_at(const float *c) { return *(const float2 *)c; }
INLINE void put_pair(float *c, float x, float y) { *(float2 *)c = {x, y}; }
template <class T> INLINE float2 pair_at(const T *c) {
    u32 both = *(const u32 *)c;
    return {get(T{(u16)both}), get(T{(u16)(both >> 16)})};
}
template <class T> INLINE void put_pair(T *c, float x, float y) { *(u32 *)c = pair(x, y, T()); }

// c[rows of e] = beta c + first (+ second), c `[rows, n]`; second's a is null where there is none. Grid x over columns, y
// over tiles. Shared memory: 192 (128 + COLUMNS) bytes.
template <class T, class C, int COLUMNS, bool DOWN>
INLINE void grouped(const Term<T> &first, const Term<T> &second, C *c, u32 n, float beta, const u32 *tiles) {
    using W = Warps<128, COLUMNS>;
    u32 expert = tiles[3 * blockIdx.y], begin = tiles[3 * blockIdx.y + 1], column = blockIdx.x * COLUMNS;
    if (expert == 0xffffffffu)
        return;
    int rows = min((int)(tiles[3 * blockIdx.y + 2] - begin), 128), columns = n - column;
    float sums[W::OWN_ROWS / 16][W::OWN_COLUMNS / 8][4] = {};
    auto add = [&](const Term<T> &term) {
        const T *b = term.b + (u64)expert * n * term.k + (DOWN ? column : (u64)column * term.k);
        sweep<T, 128, COLUMNS, false, DOWN>(sums, term.a + (u64)begin * term.k, term.k, b, DOWN ? n : term.k, term.k, rows,
                                            columns);
    };
    if (second.a) {
        add(second);
        float factor = __fdiv_rn(second.alpha, first.alpha);
        for (auto &m : sums)
            for (auto &pair : m)
                for (float &x : pair)
                    x *= factor;
    }
    add(first);
    c += (u64)begin * n + column;
    each_pair<128, COLUMNS>(sums, [&](int row, int at, float x, float y) {
        if (row >= rows || at >= columns)
            return;
        C *to = c + (u64)row * n + at;
        float2 old = {0, 0};
        if (beta != 0)
            old = pair_at(to);
        put_pair(to, x * first.alpha + beta * old.x, y * first.alpha + beta * old.y);
    });
}

#define GROUPED(T, NAME, C, C_NAME, COLUMNS)                                                                            \
    KERNEL __launch_bounds__(256, 2) grouped_##NAME##_##C_NAME##_##COLUMNS##_trans(                                     \
        Term<T> first, Term<T> second, C *c, u32 n, float beta, const u32 *tiles) {                                     \
        grouped<T, C, COLUMNS, false>(first, second, c, n, beta, tiles);                                                \
    }                                                                                                                   \
    KERNEL __launch_bounds__(256, 2) grouped_##NAME##_##C_NAME##_##COLUMNS(Term<T> first, Term<T> second, C *c, u32 n,  \
                                                                           float beta, const u32 *tiles) {              \
        grouped<T, C, COLUMNS, true>(first, second, c, n, beta, tiles);                                                 \
    }
GROUPED(bf16, bf16, bf16, bf16, 128)
GROUPED(bf16, bf16, bf16, bf16, 32)
GROUPED(bf16, bf16, float, f32, 32)
GROUPED(f16, f16, f16, f16, 128)
GROUPED(f16, f16, f16, f16, 32)
GROUPED(f16, f16, float, f32, 32)

// c[e] += alpha a[rows of e]' b[rows of e], a `[rows, m]`, b `[rows, n]`, c `[experts, m, n]` in f32. Grid x over columns, y
// over rows of c, z over experts. Shared memory: 192 (ROWS + COLUMNS) bytes.
template <class T, int ROWS, int COLUMNS>
INLINE void outer(const T *a, const T *b, float *c, u32 m, u32 n, float alpha, const u32 *offsets) {
    using W = Warps<ROWS, COLUMNS>;
    u32 expert = blockIdx.z, begin = offsets[expert], length = offsets[expert + 1] - begin;
    u32 row = blockIdx.y * ROWS, column = blockIdx.x * COLUMNS;
    if (length == 0)
        return;
    float sums[W::OWN_ROWS / 16][W::OWN_COLUMNS / 8][4] = {};
    int rows = m - row, columns = n - column;
    sweep<T, ROWS, COLUMNS, true, true>(sums, a + (u64)begin * m + row, m, b + (u64)begin * n + column, n, length, rows,
                                        columns);
    c += ((u64)expert * m + row) * n + column;
    each_pair<ROWS, COLUMNS>(sums, [&](int row, int at, float x, float y) {
        if (row >= rows || at >= columns)
            return;
        float *to = c + (u64)row * n + at;
        float2 old = pair_at(to);
        put_pair(to, old.x + x * alpha, old.y + y * alpha);
    });
}

#define OUTER(T, NAME, ROWS, COLUMNS)                                                                                   \
    KERNEL __launch_bounds__(256, 2) grouped_outer_##NAME##_##ROWS##_##COLUMNS(                                         \
        const T *a, const T *b, float *c, u32 m, u32 n, float alpha, const u32 *offsets) {                              \
        outer<T, ROWS, COLUMNS>(a, b, c, m, n, alpha, offsets);                                                         \
    }
#define OUTERS(T, NAME)                                                                                                 \
    OUTER(T, NAME, 128, 128)                                                                                            \
    OUTER(T, NAME, 128, 32)                                                                                             \
    OUTER(T, NAME, 32, 128)
OUTERS(bf16, bf16)
OUTERS(f16, f16)
