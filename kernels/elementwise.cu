// Sums, products and casts, element by element. Each thread takes 16 bytes of the first operand, grid-stride by blocks of 256;
// arrays that aren't at multiples of 16 are taken element by element.

// Calls f(i, count) for stretches of the n elements: `step` of them where all is aligned, else one.
template <int STEP, class F> INLINE void each(u64 n, bool vector, F f) {
    u64 first = (u64)blockIdx.x * blockDim.x + threadIdx.x, stride = (u64)gridDim.x * blockDim.x;
    if (vector) {
        u64 whole = n / STEP;
        for (u64 i = first; i < whole; i += stride)
            f(i * STEP, true);
        for (u64 i = whole * STEP + first; i < n; i += stride)
            f(i, false);
    } else {
        for (u64 i = first; i < n; i += stride)
            f(i, false);
    }
}

// x += y, rounded once.
template <class T> INLINE void add(T *x, const T *y, u64 n) {
    constexpr int STEP = 16 / sizeof(T);
    each<STEP>(n, aligned(x) && aligned(y), [=](u64 i, bool vector) {
        if (!vector) {
            put(x[i], get(x[i]) + get(y[i]));
            return;
        }
        Pack<T> a = load(x + i), b = load(y + i);
#pragma unroll
        for (int k = 0; k < STEP; k++)
            put(a.at[k], get(a.at[k]) + get(b.at[k]));
        store(x + i, a);
    });
}
KERNEL add_f32(float *x, const float *y, u64 n) { add(x, y, n); }
KERNEL add_bf16(bf16 *x, const bf16 *y, u64 n) { add(x, y, n); }
KERNEL add_f16(f16 *x, const f16 *y, u64 n) { add(x, y, n); }

// x *= factor.
template <class T> INLINE void scale(T *x, float factor, u64 n) {
    constexpr int STEP = 16 / sizeof(T);
    each<STEP>(n, aligned(x), [=](u64 i, bool vector) {
        if (!vector) {
            put(x[i], get(x[i]) * factor);
            return;
        }
        Pack<T> a = load(x + i);
#pragma unroll
        for (int k = 0; k < STEP; k++)
            put(a.at[k], get(a.at[k]) * factor);
        store(x + i, a);
    });
}
KERNEL scale_f32(float *x, float factor, u64 n) { scale(x, factor, n); }
KERNEL scale_bf16(bf16 *x, float factor, u64 n) { scale(x, factor, n); }
KERNEL scale_f16(f16 *x, float factor, u64 n) { scale(x, factor, n); }

// Four elements, one access.
template <class T> struct __align__(4 * sizeof(T)) Four {
    T at[4];
};
template <class T> INLINE Four<T> load_four(const T *from) {
    union {
        uint4 wide;
        uint2 narrow;
        Four<T> four;
    } u;
    if (sizeof(T) == 4)
        u.wide = *(const uint4 *)from;
    else
        u.narrow = *(const uint2 *)from;
    return u.four;
}
template <class T> INLINE void store_four(T *to, const Four<T> &four) {
    if (sizeof(T) == 4)
        *(uint4 *)to = *(const uint4 *)&four;
    else
        *(uint2 *)to = *(const uint2 *)&four;
}

// to = from, rounded to nearest even where narrower. Four elements a thread: 16 bytes of the wider type.
template <class A, class B> INLINE void cast(B *to, const A *from, u64 n) {
    each<4>(n, aligned(to) && aligned(from), [=](u64 i, bool vector) {
        if (!vector) {
            put(to[i], get(from[i]));
            return;
        }
        Four<A> a = load_four(from + i);
        Four<B> b;
#pragma unroll
        for (int k = 0; k < 4; k++)
            put(b.at[k], get(a.at[k]));
        store_four(to + i, b);
    });
}
KERNEL cast_f32_bf16(bf16 *to, const float *from, u64 n) { cast(to, from, n); }
KERNEL cast_f32_f16(f16 *to, const float *from, u64 n) { cast(to, from, n); }
KERNEL cast_bf16_f32(float *to, const bf16 *from, u64 n) { cast(to, from, n); }
KERNEL cast_f16_f32(float *to, const f16 *from, u64 n) { cast(to, from, n); }
KERNEL cast_bf16_f16(f16 *to, const bf16 *from, u64 n) { cast(to, from, n); }
KERNEL cast_f16_bf16(bf16 *to, const f16 *from, u64 n) { cast(to, from, n); }

// SwiGLU, Shazeer 2020, https://arxiv.org/abs/2002.05202: y = gate sigmoid(gate) up.
template <class T> INLINE void swiglu(const T *gate, const T *up, T *y, u64 n) {
    constexpr int STEP = 16 / sizeof(T);
    each<STEP>(n, aligned(gate) && aligned(up) && aligned(y), [=](u64 i, bool vector) {
        if (!vector) {
            float g = get(gate[i]);
            put(y[i], g * sigmoid(g) * get(up[i]));
            return;
        }
        Pack<T> a = load(gate + i), b = load(up + i);
#pragma unroll
        for (int k = 0; k < STEP; k++) {
            float g = get(a.at[k]);
            put(a.at[k], g * sigmoid(g) * get(b.at[k]));
        }
        store(y + i, a);
    });
}
KERNEL swiglu_f32(const float *gate, const float *up, float *y, u64 n) { swiglu(gate, up, y, n); }
KERNEL swiglu_bf16(const bf16 *gate, const bf16 *up, bf16 *y, u64 n) { swiglu(gate, up, y, n); }
KERNEL swiglu_f16(const f16 *gate, const f16 *up, f16 *y, u64 n) { swiglu(gate, up, y, n); }

// dup = dy silu(gate), dgate = dy up s (1 + gate (1 - s)) with s = sigmoid(gate).
INLINE void swiglu_one(float dy, float g, float u, float &dg, float &du) {
    float s = sigmoid(g);
    du = dy * (g * s);
    dg = dy * u * (s * (1.0f + g * (1.0f - s)));
}
template <class T> INLINE void swiglu_back(const T *dy, const T *gate, const T *up, T *dgate, T *dup, u64 n) {
    constexpr int STEP = 16 / sizeof(T);
    bool vector = aligned(dy) && aligned(gate) && aligned(up) && aligned(dgate) && aligned(dup);
    each<STEP>(n, vector, [=](u64 i, bool vector) {
        float dg, du;
        if (!vector) {
            swiglu_one(get(dy[i]), get(gate[i]), get(up[i]), dg, du);
            put(dgate[i], dg);
            put(dup[i], du);
            return;
        }
        Pack<T> d = load(dy + i), a = load(gate + i), b = load(up + i);
#pragma unroll
        for (int k = 0; k < STEP; k++) {
            swiglu_one(get(d.at[k]), get(a.at[k]), get(b.at[k]), dg, du);
            put(a.at[k], dg);
            put(b.at[k], du);
        }
        store(dgate + i, a);
        store(dup + i, b);
    });
}
KERNEL swiglu_backward_f32(const float *dy, const float *gate, const float *up, float *dgate, float *dup, u64 n) {
    swiglu_back(dy, gate, up, dgate, dup, n);
}
KERNEL swiglu_backward_bf16(const bf16 *dy, const bf16 *gate, const bf16 *up, bf16 *dgate, bf16 *dup, u64 n) {
    swiglu_back(dy, gate, up, dgate, dup, n);
}
KERNEL swiglu_backward_f16(const f16 *dy, const f16 *gate, const f16 *up, f16 *dgate, f16 *dup, u64 n) {
    swiglu_back(dy, gate, up, dgate, dup, n);
}
