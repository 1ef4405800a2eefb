// What a decoder layer does between two attentions, for one row, in one launch:
//
//   t = residual + o(attention);   a = silu(gate(n)) * up(n), n = rms_norm(t)
//   u = t + down(a);               qkv = qkv(rms_norm(u)), of the next layer, if there is one
//
// One block stays on each multiprocessor. Weights depend on nothing, so that each warp has its own
// sequence of them on its way into shared memory, from the beginning to the last product: while blocks
// wait for one another, the memory has work. A lane reads what it fetched itself, which needs no
// barrier. A few warps more add up what the others have, and wait for other blocks; they fetch nothing,
// so that they need not wait for that.
//
// Rows of weights (PLAIN, E4M3) are multiplied 512 bytes at a time: the left operand of mma.m16n8k16
// has eight pieces of one row of weights as rows, and eight of another; the right operand has the same
// pieces of x as columns. What is wanted is on the diagonal. Tiles (INT4) lie as int4_layout.py packs
// them, a row an output feature; all columns are x.
//
// Defined by whoever compiles: CODING, IS_BFLOAT16, HIDDEN, INNER (of the feed-forward layer), HEADS
// (inputs of o), QKV (outputs, 0: no such product), BLOCKS, WARPS (that multiply), DEPTH (steps on
// their way to each), VALUES (at most, of a block in a product), GROUP (of four bits), REGISTERS (of a
// thread: what is left is for the blocks of the attention that follows).

typedef unsigned int u32;
typedef unsigned short u16;
typedef unsigned char u8;

#define DEVICE __device__ __forceinline__
#define PLAIN 0
#define E4M3 1
#define INT4 2

#if IS_BFLOAT16
#define FLOAT "bf16"
#else
#define FLOAT "f16"
#endif
// Codes become float16 exactly, and so do inputs that a power of two has brought into its range, but
// for those that are less than its least of the largest one.
#if CODING == PLAIN
#define FACTOR FLOAT
#else
#define FACTOR "f16"
#endif

constexpr int FINISHERS = 128;
constexpr int THREADS = WARPS * 32 + FINISHERS;
constexpr int STEP = 1024;  // bytes of a warp
constexpr int STEP_INPUTS = CODING == PLAIN ? 256 : CODING == E4M3 ? 512 : 128;
constexpr int LEAST_STEPS = CODING == PLAIN ? 4 : CODING == E4M3 ? 2 : 1;
constexpr int GROUPS = CODING == INT4 ? STEP_INPUTS / GROUP : 0;  // of a step
constexpr int SCALE_BYTES = GROUPS * 64;
constexpr int SLOT = STEP + SCALE_BYTES;
constexpr int RING = WARPS * DEPTH * SLOT;
constexpr int MULTIPLIERS = WARPS * 32;
constexpr int PRODUCTS = QKV ? 4 : 3;
constexpr bool IS_SCALED = CODING != PLAIN || !IS_BFLOAT16;

DEVICE constexpr int inputs_of(int p) { return p == 0 ? HEADS : p == 2 ? INNER : HIDDEN; }
DEVICE constexpr int outputs_of(int p) { return p == 1 ? INNER : p == 3 ? QKV : HIDDEN; }

// Warps that share the inputs of a product; the others have other outputs.
DEVICE constexpr int shares_of(int p) {
    const int steps = inputs_of(p) / STEP_INPUTS;
    int shares = WARPS;
    while (shares > 1 && (steps % shares || steps / shares < LEAST_STEPS)) shares /= 2;
    return shares;
}
DEVICE constexpr int steps_of(int p) { return inputs_of(p) / STEP_INPUTS / shares_of(p); }

// Items are what warps take in turns: two rows, of which a gate and its up are two, or a tile.
constexpr int ITEM = CODING == INT4 ? 16 : 2;             // outputs before gates
DEVICE constexpr int items_of(int p) { return outputs_of(p) / (p == 1 && CODING != INT4 ? 1 : ITEM); }
constexpr int VISITS = CODING == INT4 ? 2 : 1;            // of gates: tile and tile
DEVICE constexpr int visits_of(int p) { return p == 1 ? VISITS : 1; }

constexpr int MOST_INPUTS = INNER > HIDDEN ? (INNER > HEADS ? INNER : HEADS)
                                           : (HIDDEN > HEADS ? HIDDEN : HEADS);

struct Arguments {
    const u8 *weights[4];
    const void *scales[4];
    const u16 *attention, *residual, *norms[2], *bias;
    u16 *middle, *inner, *sum, *qkv;  // t, a, u, qkv
    u32 *meeting;                     // zero before the first launch
    float epsilon;
};

DEVICE u32 shared_address(const void *at) { return (u32)__cvta_generic_to_shared(at); }

DEVICE void fetch_16(u32 target, const u8 *source) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(target), "l"(source) : "memory");
}

DEVICE void end_step() { asm volatile("cp.async.commit_group;" ::: "memory"); }

DEVICE void wait_for_step() { asm volatile("cp.async.wait_group %0;" ::"n"(DEPTH - 1) : "memory"); }

DEVICE uint4 load_16(u32 at) {
    uint4 v;
    asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "r"(at) : "memory");
    return v;
}

DEVICE u32 load_4(u32 at) {
    u32 v;
    asm volatile("ld.shared.u32 %0, [%1];" : "=r"(v) : "r"(at) : "memory");
    return v;
}

// What other blocks have written meanwhile.
DEVICE uint4 load_fresh_16(const u16 *at) {
    uint4 v;
    asm volatile("ld.global.cg.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(at) : "memory");
    return v;
}

DEVICE u16 load_fresh(const u16 *at) {
    u16 v;
    asm volatile("ld.global.cg.u16 %0, [%1];" : "=h"(v) : "l"(at) : "memory");
    return v;
}

DEVICE void multiply(float (&c)[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32." FACTOR "." FACTOR ".f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

DEVICE u32 word_of(const uint4 &four, int i) {
    return i == 0 ? four.x : i == 1 ? four.y : i == 2 ? four.z : four.w;
}

DEVICE u16 rounded(float value) {
    u16 d;
    asm("cvt.rn." FLOAT ".f32 %0, %1;" : "=h"(d) : "f"(value));
    return d;
}

DEVICE float widened(u16 value) {
    float d;
    asm("cvt.f32." FLOAT " %0, %1;" : "=f"(d) : "h"(value));
    return d;
}

DEVICE u32 paired(float low, float high) {
    u32 d;
    asm("cvt.rn." FACTOR "x2.f32 %0, %1, %2;" : "=r"(d) : "f"(high), "f"(low));
    return d;
}

// Two numbers in E4M3, the lower or the upper ones of a word.
template <int HALF> DEVICE u32 two_of(u32 word) {
    u32 d;
    asm("{\n.reg .b16 low, high;\nmov.b32 {low, high}, %1;\n"
        "cvt.rn.f16x2.e4m3x2 %0, %2;\n}" : "=r"(d) : "r"(word), "h"((u16)(word >> (16 * HALF))));
    return d;
}

DEVICE float low_half(u32 two) {
    float d;
    asm("{\n.reg .b16 a, b;\nmov.b32 {a, b}, %1;\ncvt.f32.f16 %0, a;\n}" : "=f"(d) : "r"(two));
    return d;
}

DEVICE float high_half(u32 two) { return low_half(two >> 16); }

DEVICE float silu(float value) { return value / (1.0f + __expf(-value)); }

// The outputs of a product that are this block's, in items.
DEVICE int first_item(int p, int block) {
    const int items = p == 0 ? items_of(0) : p == 1 ? items_of(1) : p == 2 ? items_of(2) : items_of(3);
    return (int)((long long)items * block / BLOCKS);
}

// Where a warp's fetches are; ahead of what it multiplies, through all products.
struct Fetches {
    const Arguments &of;
    int product, visit, end, step;
    const u8 *at, *scales;
    u32 apart, ring, slot;
    int warp, lane;

    DEVICE Fetches(const Arguments &of, u32 ring)
        : of(of), product(-1), visit(0), end(0), step(0), at(0), scales(0), apart(0), ring(ring),
          slot(ring), warp(threadIdx.x / 32), lane(threadIdx.x % 32) {}

    template <int P> DEVICE void seek() {
        constexpr int SHARES = shares_of(P), STEPS = steps_of(P);
        const int first = first_item(P, blockIdx.x);
        const int share = warp % SHARES;
        if (CODING == INT4) {
            const long long tile =
                first + (visits_of(P) == 2 ? visit / 2 + visit % 2 * items_of(P) : visit);
            const long long step = tile * (inputs_of(P) / STEP_INPUTS) + share * STEPS;
            at = of.weights[P] + step * STEP + lane * 16;
            scales = static_cast<const u8 *>(of.scales[P]) + step * SCALE_BYTES + lane * 16;
            apart = STEP / 2;
        } else {
            constexpr long long ROW = (long long)inputs_of(P) * (CODING == PLAIN ? 2 : 1);
            const long long row = (long long)(first + visit) * (P == 1 ? 1 : 2);
            at = of.weights[P] + row * ROW + share * STEPS * (STEP / 2) + lane * 16;
            apart = (u32)(P == 1 ? INNER * ROW : ROW);
        }
        step = STEPS;
    }

    template <int P> DEVICE void begin() {
        visit = warp / shares_of(P);
        end = (first_item(P, blockIdx.x + 1) - first_item(P, blockIdx.x)) * visits_of(P);
    }

    // The next step of the sequence, after the last one of an item.
    DEVICE void turn() {
        if (product == 0) visit += WARPS / shares_of(0);
        else if (product == 1) visit += WARPS / shares_of(1);
        else if (product == 2) visit += WARPS / shares_of(2);
        else if (product == 3) visit += WARPS / shares_of(3);
        while (visit >= end && product < PRODUCTS) {
            ++product;
            if (product == 0) begin<0>();
            else if (product == 1) begin<1>();
            else if (product == 2) begin<2>();
            else if (PRODUCTS == 4 && product == 3) begin<3>();
        }
        if (product == 0) seek<0>();
        else if (product == 1) seek<1>();
        else if (product == 2) seek<2>();
        else if (PRODUCTS == 4 && product == 3) seek<3>();
    }

    DEVICE void next() {
        if (step == 0 && product < PRODUCTS) turn();
        if (product < PRODUCTS) {
            fetch_16(slot + lane * 16, at);
            fetch_16(slot + lane * 16 + STEP / 2, at + apart);
            at += CODING == INT4 ? STEP : STEP / 2;
            if (CODING == INT4) {
                if (lane < SCALE_BYTES / 16) fetch_16(slot + STEP + lane * 16, scales);
                scales += SCALE_BYTES;
            }
            --step;
        }
        end_step();
        slot = following(slot);
    }

    DEVICE u32 following(u32 slot) const {
        return slot == ring + (DEPTH - 1) * SLOT ? ring : slot + SLOT;
    }
};

// A power of two that brings the largest input into [2^13, 2^14), and one over it.
DEVICE float scale_for(float largest, float &rest) {
    const int exponent = min(max(267 - (int)(__float_as_uint(largest) >> 23), 1), 253);
    rest = __uint_as_float((u32)(254 - exponent) << 23);
    return __uint_as_float((u32)exponent << 23);
}

// What a block shares beside its ring.
struct Shared {
    float parts[WARPS][VALUES];
    float squares[WARPS], largest[WARPS];
    float sums[CODING == INT4 ? MOST_INPUTS / GROUP : 1];  // of groups of x
    alignas(16) u8 x[MOST_INPUTS * 2];
};

DEVICE void sync_multipliers() { asm volatile("bar.sync 4, %0;" ::"n"(MULTIPLIERS) : "memory"); }

// A thread's part of x and of the norm's weight, on their way.
template <int P> struct Inputs {
    static constexpr int EIGHTS = inputs_of(P) / 8;
    static constexpr int TURNS = (EIGHTS + MULTIPLIERS - 1) / MULTIPLIERS;
    static constexpr bool HAS_NORM = P == 1 || P == 3;
    uint4 raw[TURNS], weight[TURNS];

    DEVICE Inputs(const Arguments &of) {
        const u16 *x = P == 0 ? of.attention : P == 1 ? of.middle : P == 2 ? of.inner : of.sum;
        const u16 *norm = P == 1 ? of.norms[0] : of.norms[1];
#pragma unroll
        for (int t = 0; t < TURNS; ++t) {
            const int at = t * MULTIPLIERS + threadIdx.x;
            raw[t] = weight[t] = make_uint4(0, 0, 0, 0);
            if (EIGHTS % MULTIPLIERS && at >= EIGHTS) break;
            raw[t] = load_fresh_16(x + at * 8);
            if (HAS_NORM) weight[t] = *reinterpret_cast<const uint4 *>(norm + at * 8);
        }
    }

    DEVICE float put(Shared &shared) const;
};

// Into shared memory, times the norm's weight, in the factors' type and range; squares are added
// up on the way. Returns what products are to be multiplied by.
template <int P> DEVICE float Inputs<P>::put(Shared &shared) const {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    float square = 0, largest = 0, values[TURNS][8];
#pragma unroll
    for (int t = 0; t < TURNS; ++t)
#pragma unroll
        for (int i = 0; i < 8; ++i) {
            float value = widened((u16)(word_of(raw[t], i / 2) >> (16 * (i % 2))));
            if (HAS_NORM) {
                square += value * value;
                value *= widened((u16)(word_of(weight[t], i / 2) >> (16 * (i % 2))));
            }
            largest = fmaxf(largest, fabsf(value));
            values[t][i] = value;
        }
    if (HAS_NORM) {
#pragma unroll
        for (int far = 16; far; far /= 2) square += __shfl_xor_sync(~0u, square, far);
        if (lane == 0) shared.squares[warp] = square;
    }
    float factor = 1, rest = 1;
    if (IS_SCALED) {
        u32 top = __float_as_uint(largest);
        asm volatile("redux.sync.max.u32 %0, %0, 0xffffffff;" : "+r"(top));
        if (lane == 0) shared.largest[warp] = __uint_as_float(top);
        sync_multipliers();
#pragma unroll
        for (int i = 0; i < WARPS; ++i) largest = fmaxf(largest, shared.largest[i]);
        factor = scale_for(largest, rest);
    }
#pragma unroll
    for (int t = 0; t < TURNS; ++t) {
        const int at = t * MULTIPLIERS + threadIdx.x;
        u32 two[4];
        float sum = 0;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            two[i] = paired(values[t][2 * i] * factor, values[t][2 * i + 1] * factor);
            if (CODING == INT4) sum += low_half(two[i]) + high_half(two[i]);
        }
        if (CODING == INT4)
#pragma unroll
            for (int far = GROUP / 16; far; far /= 2) sum += __shfl_xor_sync(~0u, sum, far);
        if (EIGHTS % MULTIPLIERS && at >= EIGHTS) break;
        if (CODING == INT4 && lane % (GROUP / 8) == 0) shared.sums[at / (GROUP / 8)] = sum;
        // Of E4M3 lanes have 16 inputs: the first eights of all, then the second ones.
        const int place = CODING == E4M3 ? at / 64 * 64 + at % 2 * 32 + at % 64 / 2 : at;
        *reinterpret_cast<uint4 *>(shared.x + place * 16) =
            make_uint4(two[0], two[1], two[2], two[3]);
    }
    sync_multipliers();
    return rest;
}

// A step of an item. slot: of this warp; x, sums: of the step.
DEVICE void add_step(float (&acc)[2][4], u32 slot, u32 x, const float *sums, int lane) {
    if constexpr (CODING == INT4) {
        uint4 blocks[2];
#pragma unroll
        for (int i = 0; i < 2; ++i) blocks[i] = load_16(slot + i * 512 + lane * 16);
#pragma unroll
        for (int g = 0; g < GROUPS; ++g) {
            float part[2][4] = {};
#pragma unroll
            for (int i = 0; i < GROUP / 32; ++i) {
                const int place = g * (GROUP / 32) + i;
                const uint4 b = load_16(x + place * 64 + lane % 4 * 16);
#pragma unroll
                for (int k = 0; k < 2; ++k) {
                    const u32 word = word_of(blocks[place / 2], place % 2 * 2 + k), next = word >> 8;
                    // 1024 + q, and 1024 + 16 q of the upper eight features.
                    multiply(part[k], (word & 0x000f000fu) | 0x64006400u,
                             (word & 0x00f000f0u) | 0x64006400u,
                             (next & 0x000f000fu) | 0x64006400u,
                             (next & 0x00f000f0u) | 0x64006400u, k ? b.z : b.x, k ? b.w : b.y);
                }
            }
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const u32 both = load_4(slot + STEP + g * 64 + half * 32 + lane / 4 * 4);
                const float zero = __uint_as_float((both & 31u) << (half ? 17 : 13) | 0x44800000u);
                const float sum = part[0][half * 2] + part[1][half * 2] - zero * sums[g];
                acc[0][half] += __uint_as_float(both & ~31u) * sum;
            }
        }
    } else {
        const uint4 one = load_16(slot + lane * 16), other = load_16(slot + STEP / 2 + lane * 16);
        const uint4 b = load_16(x + lane * 16);
        if constexpr (CODING == PLAIN) {
            multiply(acc[0], one.x, other.x, one.y, other.y, b.x, b.y);
            multiply(acc[1], one.z, other.z, one.w, other.w, b.z, b.w);
        } else {
            const uint4 c = load_16(x + 512 + lane * 16);
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const uint4 &four = i < 2 ? b : c;
                const u32 mine = word_of(one, i), theirs = word_of(other, i);
                multiply(acc[i % 2], two_of<0>(mine), two_of<0>(theirs), two_of<1>(mine),
                         two_of<1>(theirs), i % 2 ? four.z : four.x, i % 2 ? four.w : four.y);
            }
        }
    }
}

template <int P>
DEVICE void multiply_all(const Arguments &of, const Inputs<P> &inputs, Fetches &fetches, u32 &slot,
                         Shared &shared) {
    constexpr int SHARES = shares_of(P), OTHERS = WARPS / SHARES, STEPS = steps_of(P);
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, share = warp % SHARES;
    const float rest = inputs.put(shared);
    const int first = first_item(P, blockIdx.x);
    const int visits = (first_item(P, blockIdx.x + 1) - first) * visits_of(P);
    const u32 x = shared_address(shared.x) + share * STEPS * STEP_INPUTS * 2;
    const float *sums = shared.sums + share * STEPS * GROUPS;
    float *target = shared.parts[share];
    for (int visit = warp / SHARES; visit < visits; visit += OTHERS) {
        float acc[2][4] = {};
#pragma unroll
        for (int s = 0; s < STEPS; ++s) {
            wait_for_step();
            if (CODING == INT4) __syncwarp();
            add_step(acc, slot, x + s * STEP_INPUTS * 2, sums + s * GROUPS, lane);
            if (CODING == INT4) __syncwarp();
            slot = fetches.following(slot);
            fetches.next();
        }
        if (CODING == INT4) {
            if (lane % 4 == 0) {
                target[visit * 16 + lane / 4] = acc[0][0] * rest;
                target[visit * 16 + 8 + lane / 4] = acc[0][1] * rest * 0.0625f;
            }
        } else {
            const bool is_wanted = lane % 4 == lane / 8, is_odd = lane / 4 % 2;
            const float one = is_odd ? acc[0][1] + acc[1][1] : acc[0][0] + acc[1][0];
            const float other = is_odd ? acc[0][3] + acc[1][3] : acc[0][2] + acc[1][2];
            const bool is_low = lane < 16;
            float mine = is_wanted ? (is_low ? one : other) : 0.0f;
            const float theirs = is_wanted ? (is_low ? other : one) : 0.0f;
            mine += __shfl_xor_sync(~0u, theirs, 16);
#pragma unroll
            for (int far = 8; far; far /= 2) mine += __shfl_xor_sync(~0u, mine, far);
            if (lane % 16 == 0) target[visit * 2 + lane / 16] = mine * rest;
        }
    }
    asm volatile("bar.arrive 1, %0;" ::"n"(THREADS) : "memory");
}

DEVICE void let_next_start() { asm volatile("griddepcontrol.launch_dependents;"); }

DEVICE void wait_for_inputs() { asm volatile("griddepcontrol.wait;" ::: "memory"); }

// Blocks wait for one another: the first bit turns when all have come.
DEVICE void meet(u32 *meeting) {
    const u32 step = blockIdx.x ? 1u : 0x80000000u - (BLOCKS - 1);
    u32 before, now;
    asm volatile("atom.add.acq_rel.gpu.global.u32 %0, [%1], %2;"
                 : "=r"(before) : "l"(meeting), "r"(step) : "memory");
    do {
        asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(now) : "l"(meeting) : "memory");
    } while (!((before ^ now) >> 31));
}

// A product's outputs, of what the warps have of them.
template <int P>
DEVICE void finish(const Arguments &of, const Shared &shared) {
    constexpr int SHARES = shares_of(P);
    constexpr bool IS_GATED = P == 1, HAS_NORM = P == 1 || P == 3;
    const int at = threadIdx.x - WARPS * 32;
    const int first = first_item(P, blockIdx.x), end = first_item(P, blockIdx.x + 1);
    constexpr int PER_ITEM = outputs_of(P) / items_of(P);
    const int count = (end - first) * PER_ITEM, start = first * PER_ITEM;
    const u16 *old = P == 0 ? of.residual : of.middle;
    u16 *target = P == 0 ? of.middle : P == 1 ? of.inner : P == 2 ? of.sum : of.qkv;
    float before = 0, scale[2] = {1, 1};
    auto prepare = [&](int i) {
        if (P == 0 || P == 2) before = widened(load_fresh(old + start + i));
        if (CODING == E4M3) {
            const float *scales = static_cast<const float *>(of.scales[P]);
            scale[0] = scales[start + i];
            if (IS_GATED) scale[1] = scales[INNER + start + i];
        }
    };
    if (at < count) prepare(at);
    asm volatile("bar.sync 1, %0;" ::"n"(THREADS) : "memory");
    float norm = 1;
    if (HAS_NORM) {
        float square = 0;
#pragma unroll
        for (int i = 0; i < WARPS; ++i) square += shared.squares[i];
        norm = rsqrtf(square / HIDDEN + of.epsilon);
    }
    for (int i = at; i < count; i += FINISHERS) {
        if (i != at) prepare(i);
        const int value = !IS_GATED ? i : CODING == INT4 ? i / 16 * 32 + i % 16 : 2 * i;
        float sum = 0, up = 0;
#pragma unroll
        for (int k = 0; k < SHARES; ++k) {
            sum += shared.parts[k][value];
            if (IS_GATED) up += shared.parts[k][value + (CODING == INT4 ? 16 : 1)];
        }
        sum *= norm * scale[0];
        if (IS_GATED) sum = silu(sum) * (up * norm * scale[1]);
        if (P == 3 && of.bias) sum += widened(of.bias[start + i]);
        if (P == 0 || P == 2) sum = before + widened(rounded(sum));
        target[start + i] = rounded(sum);
    }
    if (P + 1 < PRODUCTS) {
        asm volatile("bar.sync 3, %0;" ::"n"(FINISHERS) : "memory");
        if (at == 0) meet(of.meeting);
        asm volatile("bar.sync 2, %0;" ::"n"(THREADS) : "memory");
    }
}

DEVICE void wait_for_others() { asm volatile("bar.sync 2, %0;" ::"n"(THREADS) : "memory"); }

extern "C" __global__ void __maxnreg__(REGISTERS)
    stretch(const __grid_constant__ Arguments of) {
    extern __shared__ __align__(128) u8 memory[];
    Shared &shared = *reinterpret_cast<Shared *>(memory + RING);
    const int warp = threadIdx.x / 32;
    if (warp >= WARPS) {
        wait_for_inputs();
        finish<0>(of, shared);
        finish<1>(of, shared);
        finish<2>(of, shared);
        if constexpr (PRODUCTS == 4) finish<3>(of, shared);
        return;
    }
    u32 slot = shared_address(memory) + warp * DEPTH * SLOT;
    Fetches fetches(of, slot);
    wait_for_inputs();
    {
        // Asked for before weights, which would be in the way.
        const Inputs<0> inputs(of);
        for (int i = 0; i < DEPTH; ++i) fetches.next();
        multiply_all<0>(of, inputs, fetches, slot, shared);
    }
    wait_for_others();
    multiply_all<1>(of, Inputs<1>(of), fetches, slot, shared);
    wait_for_others();
    let_next_start();
    multiply_all<2>(of, Inputs<2>(of), fetches, slot, shared);
    if constexpr (PRODUCTS == 4) {
        wait_for_others();
        multiply_all<3>(of, Inputs<3>(of), fetches, slot, shared);
    }
}
