// Products with weights of four bits; inputs, outputs and accumulation stay as they are.
//
// y[m, n] = sum_k x[m, k] s[n, g] (q[n, k] - z[n, g]), g = k / GROUP, accumulated in float32.
//
// The weight is the left operand of mma.m16n8k16, so that one row of x costs no more than eight. It
// lies in the order in which lanes hold that operand: a tile is 16 output features, a block 64
// inputs of it, and lane l has 16 bytes of a block, one word for each of its four products. Inputs
// are dealt to lanes so that each lane reads eight neighbours of a row of x at once; see
// chiplet_nvidia/linear/int4_layout.py, which packs.
//
// A word holds eight numbers q. Two of them, with the upper bits of the float 128 (bfloat16) or
// 1024 (float16), are the numbers 128 + q or 1024 + q: no conversion is needed.
//
// Defined by whoever compiles: IS_BFLOAT16, GROUP, FEATURE_TILES, ROW_TILES (of 8 rows), WARPS, DEPTH
// (units on their way to each warp). A unit is 128 inputs, two blocks. IS_GATED: a block has a tile of
// gates and the tile of what they are for, half of all tiles later, and writes silu(gate) * up.

typedef unsigned int u32;
typedef unsigned short u16;

#if IS_BFLOAT16
#define FLOAT "bf16"
#define ONE 0x3f803f80u
#define MAGIC 0x4300u
#else
#define FLOAT "f16"
#define ONE 0x3c003c00u
#define MAGIC 0x6400u
#endif

constexpr int UNIT_GROUPS = 128 / GROUP;

struct Unit {
    uint4 words[FEATURE_TILES][2];
    u32 scales[FEATURE_TILES][UNIT_GROUPS][2];
};

__device__ __forceinline__ void let_next_start() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;");
#endif
}

__device__ __forceinline__ void wait_for_inputs() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

__device__ __forceinline__ uint4 load_once(const uint4 *p) {
    uint4 v;
    asm volatile("ld.global.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(p));
    return v;
}

// a * 1 + b, exact for the small integers here.
__device__ __forceinline__ u32 add_pair(u32 a, u32 b) {
    u32 d;
    asm("fma.rn." FLOAT "x2 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(ONE), "r"(b));
    return d;
}

__device__ __forceinline__ u32 pair_at(u32 word, int place) {
    return ((word >> place) & 0x000f000fu) | (MAGIC * 0x10001u);
}

// -(MAGIC + z), twice; z stands in the scale's lowest five bits.
__device__ __forceinline__ u32 minus_zero(u32 scale) {
    return ((MAGIC + (scale & 31u)) * 0x10001u) ^ 0x80008000u;
}

__device__ __forceinline__ float scale_of(u32 scale) { return __uint_as_float(scale & ~31u); }

__device__ __forceinline__ void multiply(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32." FLOAT "." FLOAT ".f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

__device__ __forceinline__ u16 rounded(float value) {
    u16 d;
    asm("cvt.rn." FLOAT ".f32 %0, %1;" : "=h"(d) : "f"(value));
    return d;
}

__device__ __forceinline__ float widened(u16 value) {
    float d;
    asm("cvt.f32." FLOAT " %0, %1;" : "=f"(d) : "h"(value));
    return d;
}

// The tiles of a block of threads.
__device__ __forceinline__ int tile_at(int t) {
    return IS_GATED ? blockIdx.x + t * gridDim.x : blockIdx.x * FEATURE_TILES + t;
}

__device__ __forceinline__ Unit load_unit(const uint4 *w, const u32 *scales, int num_units,
                                          int unit, int lane) {
    Unit u;
#pragma unroll
    for (int t = 0; t < FEATURE_TILES; ++t) {
        const long long at = (long long)tile_at(t) * num_units + unit;
#pragma unroll
        for (int b = 0; b < 2; ++b) u.words[t][b] = load_once(w + (at * 2 + b) * 32 + lane);
#pragma unroll
        for (int g = 0; g < UNIT_GROUPS; ++g)
#pragma unroll
            for (int half = 0; half < 2; ++half)
                u.scales[t][g][half] =
                    __ldg(scales + (at * UNIT_GROUPS + g) * 16 + half * 8 + lane / 4);
    }
    return u;
}

__device__ __forceinline__ u32 paired(float low, float high) {
    u32 d;
    asm("cvt.rn." FLOAT "x2.f32 %0, %1, %2;" : "=r"(d) : "f"(high), "f"(low));
    return d;
}

// 32 inputs: two products for each tile of features and each tile of rows.
__device__ __forceinline__ void add_inputs(float (&part)[FEATURE_TILES][ROW_TILES][4],
                                           const Unit &u, const u16 *x, long long x_stride,
                                           int num_rows, int place, int group, int lane) {
    u32 a[FEATURE_TILES][2][4];
#pragma unroll
    for (int t = 0; t < FEATURE_TILES; ++t) {
        const uint4 block = u.words[t][place / 2];
        const u32 words[2] = {place % 2 ? block.z : block.x, place % 2 ? block.w : block.y};
        const u32 low = minus_zero(u.scales[t][group][0]);
        const u32 high = minus_zero(u.scales[t][group][1]);
#pragma unroll
        for (int s = 0; s < 2; ++s)
#pragma unroll
            for (int i = 0; i < 4; ++i)
                a[t][s][i] = add_pair(pair_at(words[s], 4 * i), i % 2 ? high : low);
    }
#pragma unroll
    for (int m = 0; m < ROW_TILES; ++m) {
        const int row = m * 8 + lane / 4;
        uint4 b = make_uint4(0, 0, 0, 0);
        if (row < num_rows)
            b = *reinterpret_cast<const uint4 *>(x + row * x_stride + place * 32 + lane % 4 * 8);
#pragma unroll
        for (int t = 0; t < FEATURE_TILES; ++t) {
            multiply(part[t][m], a[t][0], b.x, b.y);
            multiply(part[t][m], a[t][1], b.z, b.w);
        }
    }
}

__device__ __forceinline__ void add_unit(float (&acc)[FEATURE_TILES][ROW_TILES][4],
                                         const Unit &u, const u16 *x, long long x_stride,
                                         int num_rows, int lane) {
#pragma unroll
    for (int g = 0; g < UNIT_GROUPS; ++g) {
        float part[FEATURE_TILES][ROW_TILES][4] = {};
#pragma unroll
        for (int i = 0; i < GROUP / 32; ++i)
            add_inputs(part, u, x, x_stride, num_rows, g * (GROUP / 32) + i, g, lane);
#pragma unroll
        for (int t = 0; t < FEATURE_TILES; ++t)
#pragma unroll
            for (int m = 0; m < ROW_TILES; ++m)
#pragma unroll
                for (int i = 0; i < 4; ++i)
                    acc[t][m][i] += scale_of(u.scales[t][g][i / 2]) * part[t][m][i];
    }
}

__device__ __forceinline__ float silu(float value) { return value / (1.0f + __expf(-value)); }

// Grid: FEATURE_TILES tiles of features, 8 * ROW_TILES rows. The warps of a block share K; their
// sums are added in the order of the warps.
extern "C" __global__ void __launch_bounds__(WARPS * 32)
    int4_linear(const u16 *x, const uint4 *w, const u32 *scales, const u16 *bias, u16 *y,
                int num_rows, int num_units, int out_features, long long x_stride) {
    constexpr int FEATURES = 16 * FEATURE_TILES, ROWS = 8 * ROW_TILES;
    constexpr int WRITTEN = IS_GATED ? 16 : FEATURES;
    __shared__ float sums[WARPS][ROWS][FEATURES];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int first_row = blockIdx.y * ROWS, width = IS_GATED ? out_features / 2 : out_features;
    const int first = num_units * warp / WARPS, end = num_units * (warp + 1) / WARPS;
    x += first_row * x_stride;
    y += (long long)first_row * width;
    num_rows -= first_row;
    Unit ring[DEPTH];
#pragma unroll
    for (int d = 0; d < DEPTH; ++d)
        if (first + d < end) ring[d] = load_unit(w, scales, num_units, first + d, lane);
    let_next_start();
    wait_for_inputs();
    float acc[FEATURE_TILES][ROW_TILES][4] = {};
    for (int unit = first; unit < end; unit += DEPTH)
#pragma unroll
        for (int d = 0; d < DEPTH; ++d)
            if (unit + d < end) {
                add_unit(acc, ring[d], x + (unit + d) * 128, x_stride, num_rows, lane);
                if (unit + d + DEPTH < end)
                    ring[d] = load_unit(w, scales, num_units, unit + d + DEPTH, lane);
            }
#pragma unroll
    for (int t = 0; t < FEATURE_TILES; ++t)
#pragma unroll
        for (int m = 0; m < ROW_TILES; ++m)
#pragma unroll
            for (int i = 0; i < 4; ++i)
                sums[warp][m * 8 + lane % 4 * 2 + i % 2][t * 16 + i / 2 * 8 + lane / 4] =
                    acc[t][m][i];
    __syncthreads();
    for (int at = threadIdx.x; at < ROWS * WRITTEN; at += WARPS * 32) {
        const int row = at / WRITTEN, n = at % WRITTEN;
        if (row >= num_rows) return;
        float sum = 0;
#pragma unroll
        for (int i = 0; i < WARPS; ++i) sum += sums[i][row][n];
        const int feature = blockIdx.x * WRITTEN + n;
        if (bias) sum += widened(bias[feature]);
        if (IS_GATED) {
            float up = bias ? widened(bias[width + feature]) : 0.0f;
#pragma unroll
            for (int i = 0; i < WARPS; ++i) up += sums[i][row][WRITTEN + n];
            sum = silu(sum) * up;
        }
        y[(long long)row * width + feature] = rounded(sum);
    }
}

// silu(gate) * up of halves of rows, `[rows, 2 * width]`. Grid: blocks of 256 threads for two columns
// each; rows.
extern "C" __global__ void int4_silu_mul(const u32 *both, u32 *y, int width) {
    const int at = blockIdx.x * 256 + threadIdx.x, pairs = width / 2;
    wait_for_inputs();
    let_next_start();
    if (at >= pairs) return;
    const u32 gate = both[2ll * blockIdx.y * pairs + at];
    const u32 up = both[(2ll * blockIdx.y + 1) * pairs + at];
    y[(long long)blockIdx.y * pairs + at] =
        paired(silu(widened((u16)gate)) * widened((u16)up),
               silu(widened((u16)(gate >> 16))) * widened((u16)(up >> 16)));
}

// The weight as plain numbers, `[N, K]`. Grid: units, tiles of features; two warps.
extern "C" __global__ void int4_dequantize(const uint4 *w, const u32 *scales, u16 *out) {
    const int lane = threadIdx.x % 32, block = blockIdx.x * 2 + threadIdx.x / 32;
    const long long tile = blockIdx.y, inputs = 128ll * gridDim.x;
    const uint4 four = w[(tile * 2 * gridDim.x + block) * 32 + lane];
    const u32 words[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
    for (int place = 0; place < 2; ++place)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const int k = block * 64 + place * 32, n = half * 8 + lane / 4;
            const u32 scale = scales[(tile * UNIT_GROUPS * gridDim.x + k / GROUP) * 16 + n];
            const int zero = scale & 31;
            u32 out_words[4];
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const u32 pair = words[place * 2 + i / 2] >> (4 * (i % 2 * 2 + half));
                const float low = ((int)(pair & 15) - zero) * scale_of(scale);
                const float high = ((int)(pair >> 16 & 15) - zero) * scale_of(scale);
                out_words[i] = rounded(low) | (u32)rounded(high) << 16;
            }
            u16 *target = out + (tile * 16 + n) * inputs + k + lane % 4 * 8;
            *reinterpret_cast<uint4 *>(target) =
                make_uint4(out_words[0], out_words[1], out_words[2], out_words[3]);
        }
}

// x with the inputs of each product of a lane together: of 32, input 8j + 4s + 2p + e goes to place
// 16s + 8p + 2j + e. Grid: blocks of 256 threads for eight inputs each; rows.
extern "C" __global__ void int4_order_inputs(const u32 *x, uint4 *ordered, int num_eights,
                                             long long x_stride) {
    const int at = blockIdx.x * 256 + threadIdx.x;
    wait_for_inputs();
    let_next_start();
    if (at >= num_eights) return;
    const u32 *source = x + blockIdx.y * (x_stride / 2) + at / 4 * 16 + at % 4 / 2 * 2 + at % 2;
    ordered[(long long)blockIdx.y * num_eights + at] =
        make_uint4(source[0], source[4], source[8], source[12]);
}
