// What every kernel is made of, without a CUDA header: 16-bit floats, conversions, warp and block sums, and the
// instructions for matrices and asynchronous copies as inline PTX. Put before each source by `cargo xtask kernels`.

// No source uses all of this.
#pragma nv_diag_suppress 177

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

// The upper half of a float.
struct bf16 {
    u16 bits;
};
// IEEE half precision.
struct f16 {
    u16 bits;
};

#define KERNEL extern "C" __global__ void
#define INLINE static __device__ __forceinline__

INLINE float get(float x) { return x; }
INLINE float get(bf16 x) { return __uint_as_float((u32)x.bits << 16); }
INLINE float get(f16 x) {
    float y;
    asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits));
    return y;
}

// Nearest, ties to even.
INLINE void put(float &to, float x) { to = x; }
INLINE void put(bf16 &to, float x) { asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(to.bits) : "f"(x)); }
INLINE void put(f16 &to, float x) { asm("cvt.rn.f16.f32 %0, %1;" : "=h"(to.bits) : "f"(x)); }

// The value after a round trip through T.
template <class T> INLINE float rounded(float x) {
    T y;
    put(y, x);
    return get(y);
}

// Two values in one register, the first in the lower half.
INLINE u32 pair(float low, float high, bf16) {
    u32 d;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(d) : "f"(high), "f"(low));
    return d;
}
INLINE u32 pair(float low, float high, f16) {
    u32 d;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(d) : "f"(high), "f"(low));
    return d;
}

// 16 bytes of elements.
template <class T> struct __align__(16) Pack {
    T at[16 / sizeof(T)];
};
template <class T> INLINE Pack<T> load(const T *from) {
    union {
        uint4 raw;
        Pack<T> pack;
    } u = {*(const uint4 *)from};
    return u.pack;
}
template <class T> INLINE void store(T *to, const Pack<T> &pack) { *(uint4 *)to = *(const uint4 *)&pack; }

// Whether an address is a multiple of 16.
INLINE bool aligned(const void *p) { return ((u64)p & 15) == 0; }

// 2^x within 2^-22; subnormal results are 0.
INLINE float exp2_fast(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// e^x within 3e-7: x = n ln 2 + r, so that the rounding of x log2(e) isn't multiplied by x.
INLINE float exp_near(float x) {
    float n = rintf(fminf(fmaxf(x, -200.0f), 200.0f) * 1.4426950408889634f);
    float r = fmaf(n, 2.12194440e-4f, fmaf(n, -0.693359375f, x));
    float y = exp2_fast(r * 1.4426950408889634f);
    // In two factors, of which none overflows before the result does.
    float half = rintf(n * 0.5f);
    return y * exp2_fast(half) * exp2_fast(n - half);
}

INLINE float sigmoid(float x) { return 1.0f / (1.0f + exp_near(-x)); }

#define ALL 0xffffffffu

// Sum over a warp, the same bits in every lane.
INLINE float warp_sum(float x) {
#pragma unroll
    for (int step = 16; step > 0; step >>= 1)
        x += __shfl_xor_sync(ALL, x, step);
    return x;
}
INLINE double warp_sum(double x) {
#pragma unroll
    for (int step = 16; step > 0; step >>= 1)
        x += __shfl_xor_sync(ALL, x, step);
    return x;
}
INLINE float warp_max(float x) {
#pragma unroll
    for (int step = 16; step > 0; step >>= 1)
        x = fmaxf(x, __shfl_xor_sync(ALL, x, step));
    return x;
}

// Sum over the threads of a row of a block, `blockDim.x` of them: one warp, or several that fill the block.
INLINE float row_sum(float x) {
    __shared__ float parts[32];
    x = warp_sum(x);
    if (blockDim.x == 32)
        return x;
    __syncthreads();
    if (threadIdx.x % 32 == 0)
        parts[threadIdx.x / 32] = x;
    __syncthreads();
    float sum = 0;
    for (int i = 0; i < blockDim.x / 32; i++)
        sum += parts[i];
    return sum;
}

// Which tokens see each other in attention: query i of a sequence sees the keys end - window .. end, with
// end = i + 1 + keys - queries.
struct Spans {
    const u32 *cu_q, *cu_k; // borders of the sequences
    const u32 *tiles;       // a sequence and a stretch of 64 rows for each block of the grid's y
    u32 queries, heads, kv_heads;
    int window; // 2^30 for none
    float scale;
    u32 sequences;
};

// What follows are single instructions; the interpreter of `crates/ptx` states what each does.

INLINE u32 shared_address(const void *p) { return (u32)__cvta_generic_to_shared(p); }

// D = A B + C for A 16 x 16 and B 16 x 8, f32 sums.
INLINE void mma(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1, bf16) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
INLINE void mma(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1, f16) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Four 8 x 8 matrices of 16-bit elements; each lane gives the address of a row.
INLINE void load_matrix(u32 (&r)[4], u32 row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(row)
                 : "memory");
}
// The same, each matrix transposed.
INLINE void load_transposed(u32 (&r)[4], u32 row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(row)
                 : "memory");
}

// Begins a copy of 16 bytes to shared memory; only `bytes` of them are read, the rest are zeros.
INLINE void copy_async(u32 to, const void *from, u32 bytes) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(__cvta_generic_to_global(from)), "r"(bytes)
                 : "memory");
}
INLINE void copy_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits until at most N groups of this thread's copies are under way.
template <int N> INLINE void copy_wait() { asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory"); }

// Tiles of 16-bit elements in shared memory, as `ldmatrix` reads them.

// What a launch adds to a kernel's own shared memory.
extern __shared__ __align__(1024) u8 tile_memory[];

// A tile in shared memory: rows of D elements, whose 16-byte chunks are permuted so that eight rows' chunks of one column
// lie in different banks. Byte offset of a chunk.
template <int D> INLINE u32 place(u32 row, u32 chunk) {
    u32 turned = D % 64 == 0 ? chunk ^ (row & 7) : chunk ^ (row >> 1 & 3);
    return row * (D * 2) + turned * 16;
}

// Where this lane's row begins in 16 rows and 16 columns that are a left operand, or a transposed right one.
template <int D> INLINE u32 left_lane(u32 tile) {
    u32 lane = threadIdx.x % 32;
    return tile + place<D>(lane % 16, lane / 16);
}
// The same of 16 rows that are columns of a right operand.
template <int D> INLINE u32 right_lane(u32 tile) {
    u32 lane = threadIdx.x % 32;
    return tile + place<D>(lane / 16 * 8 + lane % 8, lane / 8 % 2);
}
// From there to another row and column, multiples of 8 and 16: the permutation is an exclusive or, and tiles begin at
// multiples of a row.
template <int D> INLINE u32 at(u32 lane, u32 row, u32 column) {
    u32 moved = D % 64 == 0 ? lane ^ (column * 2) : (lane ^ (column * 2 & 32)) + (column * 2 & ~63);
    return moved + row * (D * 2);
}
