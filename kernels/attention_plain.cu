// Causal attention without matrix instructions: for f32, where there is no fitting one (tf32 would round inputs to 11 bits, and
// who asks for f32 wants f32), for head sizes that `attention.cu` doesn't have, and for decoding, where one query meets a long
// cache and the keys are split over warps.
//
// A warp has a query and a head (for dk and dv a key and a kv head), 4 warps a block. Lanes take 32 rows of the other side at
// a time, a row a lane for products and a column in 32 for sums. Heads are multiples of 8 up to 256, arrays begin at multiples
// of 16 bytes. The tiles of `Spans` aren't used here.

// Columns of a lane.
#define OWN 8

// The sequence that holds row `at`: empty ones share its first border and come before it.
INLINE u32 sequence_of(const u32 *cu, u32 sequences, u32 at) {
    u32 low = 0, high = sequences;
    while (high - low > 1) {
        u32 middle = (low + high) / 2;
        if (cu[middle] <= at)
            low = middle;
        else
            high = middle;
    }
    return low;
}

// x y for a row of global memory and one of shared memory.
template <class T> INLINE float dot(const T *x, const float *y, u32 head_dim) {
    float sum = 0;
    for (u32 i = 0; i < head_dim; i += 16 / sizeof(T)) {
        Pack<T> pack = load(x + i);
#pragma unroll
        for (int j = 0; j < 16 / sizeof(T); j++)
            sum += get(pack.at[j]) * y[i + j];
    }
    return sum;
}

// A row into this warp's part of shared memory, as floats.
template <class T> INLINE void keep(float *to, const T *row, u32 head_dim) {
    for (u32 i = threadIdx.x; i < head_dim; i += 32)
        to[i] = get(row[i]);
    __syncwarp();
}

// sum += weight of lane j times row j, for `count` rows `stride` apart.
template <class T> INLINE void add_rows(float (&sum)[OWN], float weight, const T *rows, u32 stride, int count, u32 head_dim) {
    for (int j = 0; j < count; j++) {
        float w = __shfl_sync(ALL, weight, j);
#pragma unroll
        for (int c = 0; c < OWN; c++) {
            u32 column = threadIdx.x + 32 * c;
            if (column < head_dim)
                sum[c] += w * get(rows[(u64)j * stride + column]);
        }
    }
}

template <class T> INLINE void write_row(T *to, const float (&sum)[OWN], float factor, u32 head_dim) {
#pragma unroll
    for (int c = 0; c < OWN; c++) {
        u32 column = threadIdx.x + 32 * c;
        if (column < head_dim)
            put(to[column], sum[c] * factor);
    }
}

// This warp's query and what it sees: `first .. end` of all keys.
struct Query {
    u32 row, head, kv;
    int first, end;
};
INLINE Query own_query(const Spans &s, u32 item) {
    u32 row = item / s.heads, head = item % s.heads, i = sequence_of(s.cu_q, s.sequences, row);
    int end = (int)(s.cu_k[i + 1] + row + 1) - (int)s.cu_q[i + 1], begin = s.cu_k[i];
    return {row, head, head / (s.heads / s.kv_heads), max(end - s.window, begin), max(end, begin)};
}

INLINE float minus_infinity() { return __uint_as_float(0xff800000u); }

// o and lse, or with several splits (grid y) parts of the sums: `parts[split, queries * heads, head_dim + 2]`, after the
// sums the largest score and the denominator.
template <class T>
INLINE void forward(const T *q, const T *k, const T *v, T *o, float *lse, float *parts, const Spans &s, u32 head_dim) {
    __shared__ float rows[4][256];
    u32 item = blockIdx.x * 4 + threadIdx.y;
    if (item >= s.queries * s.heads)
        return;
    Query own = own_query(s, item);
    int share = ((own.end - own.first + (int)gridDim.y - 1) / (int)gridDim.y + 31) / 32 * 32;
    int first = own.first + (int)blockIdx.y * share, end = min(first + share, own.end);
    u32 stride = s.kv_heads * head_dim;
    float *query = rows[threadIdx.y];
    keep(query, q + (u64)item * head_dim, head_dim);
    float sum[OWN] = {}, top = minus_infinity(), total = 0;
    for (; first < end; first += 32) {
        u64 at = (u64)first * stride + own.kv * head_dim;
        int count = min(32, end - first);
        float score = minus_infinity();
        if ((int)threadIdx.x < count)
            score = dot(k + at + (u64)threadIdx.x * stride, query, head_dim) * s.scale;
        float high = fmaxf(top, warp_max(score)), shrink = exp_near(top - high), p = exp_near(score - high);
        top = high;
        total = total * shrink + warp_sum(p);
#pragma unroll
        for (int c = 0; c < OWN; c++)
            sum[c] *= shrink;
        add_rows(sum, p, v + at, stride, count, head_dim);
    }
    if (parts) {
        float *part = parts + ((u64)blockIdx.y * s.queries * s.heads + item) * (head_dim + 2);
        write_row(part, sum, 1, head_dim);
        if (threadIdx.x == 0) {
            part[head_dim] = top;
            part[head_dim + 1] = total;
        }
        return;
    }
    write_row(o + (u64)item * head_dim, sum, total > 0 ? 1.0f / total : 0, head_dim);
    if (threadIdx.x == 0)
        lse[(u64)own.head * s.queries + own.row] = total > 0 ? top + logf(total) : minus_infinity();
}

// o from the parts of `splits` splits.
template <class T>
INLINE void combine(T *o, const float *parts, u32 splits, u32 items, u32 head_dim) {
    u32 item = blockIdx.x * 4 + threadIdx.y;
    if (item >= items)
        return;
    u64 step = (u64)items * (head_dim + 2);
    parts += (u64)item * (head_dim + 2);
    float top = minus_infinity(), total = 0, sum[OWN] = {};
    for (u32 i = 0; i < splits; i++)
        top = fmaxf(top, parts[i * step + head_dim]);
    for (u32 i = 0; i < splits; i++) {
        const float *part = parts + i * step;
        if (part[head_dim + 1] == 0)
            continue;
        float factor = exp_near(part[head_dim] - top);
        total += part[head_dim + 1] * factor;
#pragma unroll
        for (int c = 0; c < OWN; c++) {
            u32 column = threadIdx.x + 32 * c;
            if (column < head_dim)
                sum[c] += part[column] * factor;
        }
    }
    write_row(o + (u64)item * head_dim, sum, total > 0 ? 1.0f / total : 0, head_dim);
}

#define PLAIN(T, NAME)                                                                                                  \
    KERNEL __launch_bounds__(128) attention_plain_forward_##NAME(const T *q, const T *k, const T *v, T *o, float *lse,  \
                                                                 float *parts, Spans s, u32 head_dim) {                 \
        forward(q, k, v, o, lse, parts, s, head_dim);                                                                   \
    }                                                                                                                   \
    KERNEL __launch_bounds__(128)                                                                                       \
        attention_combine_##NAME(T *o, const float *parts, u32 splits, u32 items, u32 head_dim) {                       \
        combine(o, parts, splits, items, head_dim);                                                                     \
    }
PLAIN(float, f32)
PLAIN(bf16, bf16)
PLAIN(f16, f16)

// dq = scale ds k with ds = p (do v' - delta).
template <class T>
INLINE void backward_queries(const T *q, const T *k, const T *v, const T *dout, const float *lse, const float *delta, T *dq,
                             const Spans &s, u32 head_dim) {
    __shared__ float rows[4][2][256];
    u32 item = blockIdx.x * 4 + threadIdx.y;
    if (item >= s.queries * s.heads)
        return;
    Query own = own_query(s, item);
    u32 stride = s.kv_heads * head_dim;
    float *query = rows[threadIdx.y][0], *grad = rows[threadIdx.y][1];
    keep(query, q + (u64)item * head_dim, head_dim);
    keep(grad, dout + (u64)item * head_dim, head_dim);
    float base = lse[(u64)own.head * s.queries + own.row], off = delta[(u64)own.head * s.queries + own.row];
    float sum[OWN] = {};
    for (int first = own.first; first < own.end; first += 32) {
        u64 at = (u64)first * stride + own.kv * head_dim, mine = at + (u64)threadIdx.x * stride;
        int count = min(32, own.end - first);
        float ds = 0;
        if ((int)threadIdx.x < count) {
            float p = exp_near(dot(k + mine, query, head_dim) * s.scale - base);
            ds = p * (dot(v + mine, grad, head_dim) - off);
        }
        add_rows(sum, ds, k + at, stride, count, head_dim);
    }
    write_row(dq + (u64)item * head_dim, sum, s.scale, head_dim);
}

// dk = scale ds' q and dv = p' do, of all heads of the group; `keys` is their number.
template <class T>
INLINE void backward_keys(const T *q, const T *k, const T *v, const T *dout, const float *lse, const float *delta, T *dk, T *dv,
                          const Spans &s, u32 head_dim, u32 keys) {
    __shared__ float rows[4][2][256];
    u32 item = blockIdx.x * 4 + threadIdx.y;
    if (item >= keys * s.kv_heads)
        return;
    u32 row = item / s.kv_heads, kv = item % s.kv_heads, group = s.heads / s.kv_heads, i = sequence_of(s.cu_k, s.sequences, row);
    float *key = rows[threadIdx.y][0], *value = rows[threadIdx.y][1];
    keep(key, k + (u64)item * head_dim, head_dim);
    keep(value, v + (u64)item * head_dim, head_dim);
    // Queries from the one at this key's place on, counted among all.
    int q0 = s.cu_q[i], q1 = s.cu_q[i + 1], place = (int)row - (int)s.cu_k[i + 1] + q1;
    int begin = max(place, q0), end = min(place + s.window, q1);
    u32 stride = s.heads * head_dim;
    float dks[OWN] = {}, dvs[OWN] = {};
    for (u32 head = kv * group; head < (kv + 1) * group; head++)
        for (int first = begin; first < end; first += 32) {
            u64 at = (u64)first * stride + head * head_dim, mine = at + (u64)threadIdx.x * stride;
            int count = min(32, end - first);
            float p = 0, ds = 0;
            if ((int)threadIdx.x < count) {
                u64 statistic = (u64)head * s.queries + first + threadIdx.x;
                p = exp_near(dot(q + mine, key, head_dim) * s.scale - lse[statistic]);
                ds = p * (dot(dout + mine, value, head_dim) - delta[statistic]);
            }
            add_rows(dks, ds, q + at, stride, count, head_dim);
            add_rows(dvs, p, dout + at, stride, count, head_dim);
        }
    write_row(dk + (u64)item * head_dim, dks, s.scale, head_dim);
    write_row(dv + (u64)item * head_dim, dvs, 1, head_dim);
}

#define PLAIN_BACKWARD(T, NAME)                                                                                         \
    KERNEL __launch_bounds__(128, 4)                                                                                    \
        attention_plain_backward_queries_##NAME(const T *q, const T *k, const T *v, const T *dout, const float *lse,    \
                                                const float *delta, T *dq, Spans s, u32 head_dim) {                     \
        backward_queries(q, k, v, dout, lse, delta, dq, s, head_dim);                                                   \
    }                                                                                                                   \
    KERNEL __launch_bounds__(128, 4)                                                                                    \
        attention_plain_backward_keys_##NAME(const T *q, const T *k, const T *v, const T *dout, const float *lse,       \
                                             const float *delta, T *dk, T *dv, Spans s, u32 head_dim, u32 keys) {       \
        backward_keys(q, k, v, dout, lse, delta, dk, dv, s, head_dim, keys);                                            \
    }
PLAIN_BACKWARD(float, f32)
PLAIN_BACKWARD(bf16, bf16)
PLAIN_BACKWARD(f16, f16)
