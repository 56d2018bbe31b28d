// Causal attention over sequences laid end to end, FlashAttention-2, Dao 2023, https://arxiv.org/abs/2307.08691, in bf16 and
// f16 on matrix instructions with f32 sums. Heads may be grouped, keys may be more than queries (aligned at their ends), and
// a window may hide old keys. No atomics: every sum has one order. The gradient of q and that of k and v are kernels of their
// own, which costs two products in seven and needs no buffer.
//
// A block has 64 rows of its own (queries; keys for dk and dv), 16 a warp, in shared memory or registers, and sweeps tiles
// of the others. `tiles` has, for each block of the grid's y, a sequence and which of its stretches of 64 rows it is;
// the grid's x is heads (kv heads for dk and dv). Threads: 128, and 256 for dk and dv of heads of 256.

constexpr int ROWS = 64;
constexpr float LOG2E = 1.4426950408889634f;

// Begins to load N rows, `stride` elements apart; rows from `left` on are zeros, and their addresses aren't used.
template <int D, int N, int THREADS, class T> INLINE void fetch(u32 to, const T *from, u32 stride, int left) {
    constexpr int CHUNKS = D / 8;
    if (THREADS % (CHUNKS * 8) == 0) {
        // A thread keeps to its column, and its rows are a multiple of eight apart.
        constexpr int STEP = THREADS / CHUNKS;
        u32 row = threadIdx.x / CHUNKS, chunk = threadIdx.x % CHUNKS;
        to += place<D>(row, chunk);
        from += (u64)row * stride + chunk * 8;
#pragma unroll
        for (int i = 0; i < N / STEP; i++)
            copy_async(to + i * STEP * D * 2, from + (u64)(i * STEP) * stride, (int)row + i * STEP < left ? 16 : 0);
    } else {
#pragma unroll
        for (int i = 0; i < N * CHUNKS / THREADS; i++) {
            u32 at = i * THREADS + threadIdx.x, row = at / CHUNKS, chunk = at % CHUNKS;
            copy_async(to + place<D>(row, chunk), from + (u64)row * stride + chunk * 8, (int)row < left ? 16 : 0);
        }
    }
}

template <int N> INLINE void clear(float (&s)[N][4]) {
#pragma unroll
    for (int n = 0; n < N; n++)
#pragma unroll
        for (int i = 0; i < 4; i++)
            s[n][i] = 0;
}

// s += x b' for a column of 16 of a and N rows of b.
template <class T, int D, int N> INLINE void column_products(float (&s)[N / 8][4], const u32 (&x)[4], u32 b, u32 k) {
#pragma unroll
    for (int n = 0; n < N / 8; n += 2) {
        u32 y[4];
        load_matrix(y, at<D>(b, n * 8, k));
        mma(s[n], x, y[0], y[1], T());
        mma(s[n + 1], x, y[2], y[3], T());
    }
}

// s = a b' for 16 rows of tile a and N rows of tile b, over D; a and b as the lane has them.
template <class T, int D, int N> INLINE void products(float (&s)[N / 8][4], u32 a, u32 b) {
    clear(s);
#pragma unroll
    for (int k = 0; k < D; k += 16) {
        u32 x[4];
        load_matrix(x, at<D>(a, 0, k));
        column_products<T, D, N>(s, x, b, k);
    }
}

// The same with a in registers.
template <class T, int D, int N> INLINE void products(float (&s)[N / 8][4], const u32 (&a)[D / 16][4], u32 b) {
    clear(s);
#pragma unroll
    for (int k = 0; k < D; k += 16)
        column_products<T, D, N>(s, a[k / 16], b, k);
}

// sum += p b for p 16 x N in T and COLUMNS of tile b's N rows.
template <class T, int D, int N, int COLUMNS>
INLINE void accumulate(float (&sum)[COLUMNS / 8][4], const float (&p)[N / 8][4], u32 b) {
#pragma unroll
    for (int k = 0; k < N / 8; k += 2) {
        u32 x[4] = {pair(p[k][0], p[k][1], T()), pair(p[k][2], p[k][3], T()), pair(p[k + 1][0], p[k + 1][1], T()),
                    pair(p[k + 1][2], p[k + 1][3], T())};
#pragma unroll
        for (int n = 0; n < COLUMNS; n += 16) {
            u32 y[4];
            load_transposed(y, at<D>(b, k * 8, n));
            mma(sum[n / 8], x, y[0], y[1], T());
            mma(sum[n / 8 + 1], x, y[2], y[3], T());
        }
    }
}

// Writes 16 rows of sums, times a factor for the upper and the lower eight; rows from `left` on aren't there.
template <class T, int COLUMNS>
INLINE void write(T *to, u32 stride, int left, const float (&sum)[COLUMNS / 8][4], float upper, float lower) {
    int row = threadIdx.x % 32 / 4, column = threadIdx.x % 4 * 2;
#pragma unroll
    for (int n = 0; n < COLUMNS / 8; n++) {
        if (row < left)
            *(u32 *)(to + (u64)row * stride + n * 8 + column) = pair(sum[n][0] * upper, sum[n][1] * upper, T());
        if (row + 8 < left)
            *(u32 *)(to + (u64)(row + 8) * stride + n * 8 + column) = pair(sum[n][2] * lower, sum[n][3] * lower, T());
    }
}

// A sequence and a stretch of it, as the grid has them.
struct Stretch {
    int q0, queries, k0, keys, first;
};
INLINE Stretch own_stretch(const Spans &s) {
    u32 sequence = s.tiles[2 * blockIdx.y];
    int q0 = s.cu_q[sequence], k0 = s.cu_k[sequence];
    return {q0, (int)s.cu_q[sequence + 1] - q0, k0, (int)s.cu_k[sequence + 1] - k0,
            (int)s.tiles[2 * blockIdx.y + 1] * ROWS};
}

// Keys seen by query i of a stretch's sequence end here; they begin at most `window` before.
INLINE int end_of(const Stretch &t, int i) { return i + 1 + t.keys - t.queries; }

template <class T, int D, int N>
INLINE void forward(const T *q, const T *k, const T *v, T *o, float *lse, const Spans &s) {
    Stretch t = own_stretch(s);
    u32 head = blockIdx.x, kv = head / (s.heads / s.kv_heads);
    u32 q_stride = s.heads * D, k_stride = s.kv_heads * D;
    u64 q_at = (u64)(t.q0 + t.first) * q_stride + head * D, k_at = (u64)t.k0 * k_stride + kv * D;
    u32 keys = shared_address(tile_memory), values = keys + N * D * 2, held = values + N * D * 2;
    int left = t.queries - t.first, warp = threadIdx.x / 32;

    // The queries pass through the memory of both tiles into registers, or stay in memory where there are too few.
    constexpr bool IN_REGISTERS = D <= 128;
    u32 a[IN_REGISTERS ? D / 16 : 1][4];
    fetch<D, ROWS, 128>(IN_REGISTERS ? keys : held, q + q_at, q_stride, left);
    copy_commit();
    if (IN_REGISTERS) {
        copy_wait<0>();
        __syncthreads();
        u32 own = left_lane<D>(keys + warp * 16 * D * 2);
#pragma unroll
        for (int i = 0; i < (IN_REGISTERS ? D / 16 : 1); i++)
            load_matrix(a[i], at<D>(own, 0, i * 16));
        __syncthreads();
    }
    u32 own = left_lane<D>(held + warp * 16 * D * 2), key_lane = right_lane<D>(keys), value_lane = left_lane<D>(values);

    int last_row = min(t.first + ROWS, t.queries) - 1;
    int begin = max(end_of(t, t.first) - s.window, 0) / N, end = (max(end_of(t, last_row), 0) + N - 1) / N;
    if (begin < end) {
        fetch<D, N, 128>(keys, k + k_at + (u64)begin * N * k_stride, k_stride, t.keys - begin * N);
        copy_commit();
    }
    float sum[D / 8][4] = {}, top[2] = {-1e30f, -1e30f}, total[2] = {};
    int row = t.first + warp * 16 + threadIdx.x % 32 / 4, column = threadIdx.x % 4 * 2;
    float scale = s.scale * LOG2E;
    for (int block = begin; block < end; block++) {
        int first = block * N;
        copy_wait<0>();
        __syncthreads();
        fetch<D, N, 128>(values, v + k_at + (u64)first * k_stride, k_stride, t.keys - first);
        copy_commit();
        float p[N / 8][4];
        if constexpr (IN_REGISTERS)
            products<T, D, N>(p, a, key_lane);
        else
            products<T, D, N>(p, own, key_lane);
        // Only tiles at an edge have keys that some row doesn't see.
        if (first + N > end_of(t, t.first) || first < end_of(t, last_row) - s.window) {
#pragma unroll
            for (int n = 0; n < N / 8; n++)
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    int key = first + n * 8 + column + i % 2, e = end_of(t, row + i / 2 * 8);
                    if (key >= e || key < e - s.window)
                        p[n][i] = -1e30f;
                }
        }
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float high = top[half];
#pragma unroll
            for (int n = 0; n < N / 8; n++)
                high = fmaxf(high, fmaxf(p[n][2 * half], p[n][2 * half + 1]));
            high = fmaxf(high, __shfl_xor_sync(ALL, high, 1));
            high = fmaxf(high, __shfl_xor_sync(ALL, high, 2));
            // A row that has seen nothing yet keeps everything at zero.
            float base = high == -1e30f ? 0 : high * scale;
            float shrink = exp2_fast(top[half] * scale - base);
            top[half] = high;
            total[half] *= shrink;
#pragma unroll
            for (int n = 0; n < D / 8; n++) {
                sum[n][2 * half] *= shrink;
                sum[n][2 * half + 1] *= shrink;
            }
#pragma unroll
            for (int n = 0; n < N / 8; n++)
#pragma unroll
                for (int i = 2 * half; i < 2 * half + 2; i++) {
                    p[n][i] = exp2_fast(p[n][i] * scale - base);
                    total[half] += p[n][i];
                }
        }
        copy_wait<0>();
        __syncthreads();
        if (block + 1 < end) {
            fetch<D, N, 128>(keys, k + k_at + (u64)(first + N) * k_stride, k_stride, t.keys - first - N);
            copy_commit();
        }
        accumulate<T, D, N, D>(sum, p, value_lane);
    }
    float inverse[2];
#pragma unroll
    for (int half = 0; half < 2; half++) {
        total[half] += __shfl_xor_sync(ALL, total[half], 1);
        total[half] += __shfl_xor_sync(ALL, total[half], 2);
        bool seen = total[half] > 0;
        inverse[half] = seen ? 1.0f / total[half] : 0;
        if (threadIdx.x % 4 == 0 && row + half * 8 < t.queries)
            lse[(u64)head * s.queries + t.q0 + row + half * 8] =
                seen ? top[half] * s.scale + logf(total[half]) : __uint_as_float(0xff800000u);
    }
    write<T, D>(o + q_at + (u64)warp * 16 * q_stride, q_stride, left - warp * 16, sum, inverse[0], inverse[1]);
}

// delta = sum of o do over a head: what the softmax's gradient takes off. A warp has a head of a token, `[heads, queries]`.
template <class T> INLINE void deltas(const T *o, const T *dout, float *delta, u32 queries, u32 heads, u32 head_dim) {
    u64 at = (u64)blockIdx.x * blockDim.y + threadIdx.y;
    if (at >= (u64)queries * heads)
        return;
    float sum = 0;
    for (u32 i = threadIdx.x; i < head_dim; i += 32)
        sum += get(o[at * head_dim + i]) * get(dout[at * head_dim + i]);
    sum = warp_sum(sum);
    if (threadIdx.x == 0)
        delta[at % heads * queries + at / heads] = sum;
}
KERNEL attention_delta_bf16(const bf16 *o, const bf16 *dout, float *delta, u32 queries, u32 heads, u32 head_dim) {
    deltas(o, dout, delta, queries, heads, head_dim);
}
KERNEL attention_delta_f16(const f16 *o, const f16 *dout, float *delta, u32 queries, u32 heads, u32 head_dim) {
    deltas(o, dout, delta, queries, heads, head_dim);
}
KERNEL attention_delta_f32(const float *o, const float *dout, float *delta, u32 queries, u32 heads, u32 head_dim) {
    deltas(o, dout, delta, queries, heads, head_dim);
}

// dq: 64 queries with their gradients stay, keys and values pass. With p = softmax(scale q k'), ds = p (do v' - delta):
// dq = scale ds k.
template <class T, int D, int N>
INLINE void backward_queries(const T *q, const T *k, const T *v, const T *dout, const float *lse, const float *delta, T *dq,
                             const Spans &s) {
    Stretch t = own_stretch(s);
    u32 head = blockIdx.x, kv = head / (s.heads / s.kv_heads);
    u32 q_stride = s.heads * D, k_stride = s.kv_heads * D;
    u64 q_at = (u64)(t.q0 + t.first) * q_stride + head * D, k_at = (u64)t.k0 * k_stride + kv * D;
    u32 queries = shared_address(tile_memory), grads = queries + ROWS * D * 2;
    u32 keys = grads + ROWS * D * 2, values = keys + N * D * 2;
    int left = t.queries - t.first, warp = threadIdx.x / 32, own = warp * 16 * D * 2;
    fetch<D, ROWS, 128>(queries, q + q_at, q_stride, left);
    fetch<D, ROWS, 128>(grads, dout + q_at, q_stride, left);

    int row = t.first + warp * 16 + threadIdx.x % 32 / 4, column = threadIdx.x % 4 * 2;
    float base[2], off[2];
#pragma unroll
    for (int half = 0; half < 2; half++) {
        bool in = row + half * 8 < t.queries;
        u64 at = (u64)head * s.queries + t.q0 + row + half * 8;
        base[half] = in ? lse[at] * LOG2E : 0;
        off[half] = in ? delta[at] : 0;
    }
    int last_row = min(t.first + ROWS, t.queries) - 1;
    int begin = max(end_of(t, t.first) - s.window, 0) / N, end = (max(end_of(t, last_row), 0) + N - 1) / N;
    float sum[D / 8][4] = {}, scale = s.scale * LOG2E;
    for (int block = begin; block < end; block++) {
        int first = block * N;
        fetch<D, N, 128>(keys, k + k_at + (u64)first * k_stride, k_stride, t.keys - first);
        fetch<D, N, 128>(values, v + k_at + (u64)first * k_stride, k_stride, t.keys - first);
        copy_commit();
        copy_wait<0>();
        __syncthreads();
        float p[N / 8][4], g[N / 8][4];
        products<T, D, N>(p, left_lane<D>(queries + own), right_lane<D>(keys));
        products<T, D, N>(g, left_lane<D>(grads + own), right_lane<D>(values));
#pragma unroll
        for (int n = 0; n < N / 8; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                int key = first + n * 8 + column + i % 2, e = end_of(t, row + i / 2 * 8);
                bool seen = key < e && key >= e - s.window;
                float x = seen ? exp2_fast(p[n][i] * scale - base[i / 2]) : 0;
                p[n][i] = x * (g[n][i] - off[i / 2]);
            }
        accumulate<T, D, N, D>(sum, p, left_lane<D>(keys));
        __syncthreads();
    }
    // Of queries that see nothing the copies are still under way.
    copy_wait<0>();
    write<T, D>(dq + q_at + (u64)warp * 16 * q_stride, q_stride, left - warp * 16, sum, s.scale, s.scale);
}

// dk and dv: 64 keys and values stay, the queries that see them pass with their gradients, of all heads of the group:
// dv = p' do, dk = scale ds' q. Where a head is wide, PARTS warps share 16 keys, each with a part of the columns.
template <class T, int D, int N, int PARTS>
INLINE void backward_keys(const T *q, const T *k, const T *v, const T *dout, const float *lse, const float *delta, T *dk,
                          T *dv, const Spans &s) {
    constexpr int THREADS = 128 * PARTS, COLUMNS = D / PARTS;
    Stretch t = own_stretch(s);
    u32 kv = blockIdx.x, group = s.heads / s.kv_heads;
    u32 q_stride = s.heads * D, k_stride = s.kv_heads * D;
    u64 k_at = (u64)(t.k0 + t.first) * k_stride + kv * D;
    u32 keys = shared_address(tile_memory), values = keys + ROWS * D * 2;
    u32 queries = values + ROWS * D * 2, grads = queries + N * D * 2;
    float *bases = (float *)(tile_memory + (2 * ROWS + 2 * N) * D * 2), *offs = bases + N;
    int left = t.keys - t.first, warp = threadIdx.x / 32 % 4, own = warp * 16 * D * 2;
    u32 part = threadIdx.x / 128 * COLUMNS;
    fetch<D, ROWS, THREADS>(keys, k + k_at, k_stride, left);
    fetch<D, ROWS, THREADS>(values, v + k_at, k_stride, left);

    // Queries from the first that sees the first key, to the last whose window still has the last key.
    int shift = t.queries - t.keys, last_key = min(t.first + ROWS, t.keys) - 1;
    int low = max(t.first + shift, 0), high = min(last_key + shift + s.window, t.queries);
    int row = t.first + warp * 16 + threadIdx.x % 32 / 4, column = threadIdx.x % 4 * 2;
    float dks[COLUMNS / 8][4] = {}, dvs[COLUMNS / 8][4] = {}, scale = s.scale * LOG2E;
    for (u32 head = kv * group; head < (kv + 1) * group; head++) {
        u64 q_at = (u64)t.q0 * q_stride + head * D;
        for (int first = low / N * N; first < high; first += N) {
            fetch<D, N, THREADS>(queries, q + q_at + (u64)first * q_stride, q_stride, t.queries - first);
            fetch<D, N, THREADS>(grads, dout + q_at + (u64)first * q_stride, q_stride, t.queries - first);
            copy_commit();
            if (threadIdx.x < N) {
                bool in = first + (int)threadIdx.x < t.queries;
                u64 at = (u64)head * s.queries + t.q0 + first + threadIdx.x;
                bases[threadIdx.x] = in ? lse[at] * LOG2E : 0;
                offs[threadIdx.x] = in ? delta[at] : 0;
            }
            copy_wait<0>();
            __syncthreads();
            float p[N / 8][4], g[N / 8][4];
            products<T, D, N>(p, left_lane<D>(keys + own), right_lane<D>(queries));
            products<T, D, N>(g, left_lane<D>(values + own), right_lane<D>(grads));
#pragma unroll
            for (int n = 0; n < N / 8; n++)
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    int at = n * 8 + column + i % 2, key = row + i / 2 * 8, e = end_of(t, first + at);
                    bool seen = first + at < t.queries && key < e && key >= e - s.window;
                    p[n][i] = seen ? exp2_fast(p[n][i] * scale - bases[at]) : 0;
                    g[n][i] = p[n][i] * (g[n][i] - offs[at]);
                }
            accumulate<T, D, N, COLUMNS>(dvs, p, at<D>(left_lane<D>(grads), 0, part));
            accumulate<T, D, N, COLUMNS>(dks, g, at<D>(left_lane<D>(queries), 0, part));
            __syncthreads();
        }
    }
    // Of keys that nobody sees the copies are still under way.
    copy_wait<0>();
    u64 to = k_at + (u64)warp * 16 * k_stride + part;
    write<T, COLUMNS>(dk + to, k_stride, left - warp * 16, dks, s.scale, s.scale);
    write<T, COLUMNS>(dv + to, k_stride, left - warp * 16, dvs, 1, 1);
}

// Rows of the tiles that pass: N for the forward pass, N_Q for dq, N_K for dk and dv. Shared memory, in rows of 2 D bytes:
// 2 N (and 64 for heads of 256); 128 + 2 N_Q; 128 + 2 N_K, and 8 N_K bytes.
#define ATTENTION(T, NAME, D, N, N_Q, N_K, PARTS)                                                                       \
    KERNEL __launch_bounds__(128) attention_forward_##NAME##_##D(const T *q, const T *k, const T *v, T *o, float *lse,  \
                                                                 Spans s) {                                             \
        forward<T, D, N>(q, k, v, o, lse, s);                                                                           \
    }                                                                                                                   \
    KERNEL __launch_bounds__(128)                                                                                       \
        attention_backward_queries_##NAME##_##D(const T *q, const T *k, const T *v, const T *dout, const float *lse,    \
                                                const float *delta, T *dq, Spans s) {                                   \
        backward_queries<T, D, N_Q>(q, k, v, dout, lse, delta, dq, s);                                                  \
    }                                                                                                                   \
    KERNEL __launch_bounds__(128 * PARTS, 2 / PARTS)                                                                            \
        attention_backward_keys_##NAME##_##D(const T *q, const T *k, const T *v, const T *dout, const float *lse,       \
                                             const float *delta, T *dk, T *dv, Spans s) {                               \
        backward_keys<T, D, N_K, PARTS>(q, k, v, dout, lse, delta, dk, dv, s);                                          \
    }
#define ATTENTIONS(T, NAME)                                                                                             \
    ATTENTION(T, NAME, 64, 64, 64, 64, 1)                                                                               \
    ATTENTION(T, NAME, 96, 64, 32, 32, 1)                                                                               \
    ATTENTION(T, NAME, 128, 64, 32, 32, 1)                                                                              \
    ATTENTION(T, NAME, 256, 32, 16, 32, 2)
ATTENTIONS(bf16, bf16)
ATTENTIONS(f16, f16)
