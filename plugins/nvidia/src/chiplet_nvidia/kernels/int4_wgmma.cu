// Products with weights of four bits for many rows on Hopper: tiles come by the copy engine, and
// matrix units take weights from registers. The formula is that of int4_linear.cu.
//
// Constants: IS_BFLOAT16; GROUP, inputs that share a scale; ROWS of x in a tile (32, 64 or 128);
// CONSUMERS, warpgroups that compute 64 features each; STAGES of the pipeline; CHUNK, rows of y
// that are stored at a time.
//
// The weight is the left operand, so that rows of x are the product's columns. It lies as
// linear/int4_layout.py packs it: a tile of 16 features is what a warp multiplies, and a lane's
// words are the operand of four products whose 16 inputs are dealt to the lanes in eights.
// int4_order_inputs of int4_linear.cu puts x into that order beforehand.
//
// Tiles of 64 * CONSUMERS features by ROWS rows are dealt out in two ways (see Schedule): whole
// ones in turns, and the first ones in equal shares of their steps along K, so that no block idles
// while others do the rest. Who computes the beginning of a shared tile adds up the other shares,
// in their order: the result does not depend on timing.

typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

#define DEVICE __device__ __forceinline__

#if IS_BFLOAT16
#define FLOAT "bf16"
#define ONE 0x3f803f80u
#define MAGIC 0x4300u
#else
#define FLOAT "f16"
#define ONE 0x3c003c00u
#define MAGIC 0x6400u
#endif

constexpr int STEP = 128;                      // inputs of a stage
constexpr int STEP_GROUPS = STEP / GROUP;
constexpr int TILES = 4 * CONSUMERS;           // of 16 features, of a block
constexpr int ACCUMULATORS = ROWS / 2;         // of a thread: 64 features by ROWS over 128 threads
constexpr int HALF_BYTES = ROWS * 128;         // 64 inputs of a tile of x
constexpr int X_BYTES = 2 * HALF_BYTES;
constexpr int W_BYTES = TILES * STEP * 8;
constexpr int SCALE_BYTES = TILES * STEP_GROUPS * 64;
constexpr int STAGE_BYTES = X_BYTES + W_BYTES + SCALE_BYTES;
constexpr int CHUNK_BYTES = CHUNK * 128;
constexpr int THREADS = 128 * (CONSUMERS + 1);

static_assert(ROWS % CHUNK == 0, "chunks of a tile");

struct alignas(64) TensorMap { u64 opaque[16]; };

// What is dealt out. The first `shared_tiles` tiles are cut into equal shares of their steps.
struct Schedule {
    int row_tiles, feature_tiles;
    int steps;                      // along K, of a tile
    int shared_tiles;
    int group;                      // row tiles that go together through all features
};

struct Place { int row, feature; };

struct Segment { int tile, begin, end; };  // steps [begin, end) of a tile

DEVICE u32 shared_address(const void *at) { return (u32)__cvta_generic_to_shared(at); }

DEVICE void wait_for_inputs() { asm volatile("griddepcontrol.wait;" ::: "memory"); }

DEVICE void let_next_start() { asm volatile("griddepcontrol.launch_dependents;"); }

DEVICE void sync_warpgroup(int consumer) {
    asm volatile("bar.sync %0, 128;" ::"r"(consumer + 1) : "memory");
}

DEVICE void set_arrivals(u32 barrier, int count) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(count));
}

DEVICE void expect_bytes(u32 at, int bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(at), "r"(bytes)
                 : "memory");
}

DEVICE void arrive_at(u32 barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}

DEVICE void wait_for(u32 barrier, u32 parity) {
    asm volatile("{\n.reg .pred done;\n"
                 "again:\n"
                 "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
                 "@done bra over;\n"
                 "bra again;\n"
                 "over:\n}" ::"r"(barrier), "r"(parity) : "memory");
}

DEVICE void load_tile(u32 target, const TensorMap *map, u32 barrier, int k, int row) {
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.tile"
                 ".mbarrier::complete_tx::bytes [%0], [%1, {%3, %4}], [%2];"
                 ::"r"(target), "l"(map), "r"(barrier), "r"(k), "r"(row) : "memory");
}

DEVICE void store_tile(const TensorMap *map, u32 source, int feature, int row) {
    asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%0, {%2, %3}], [%1];\n"
                 "cp.async.bulk.commit_group;"
                 ::"l"(map), "r"(source), "r"(feature), "r"(row) : "memory");
}

// A tile whose rows have 128 bytes, in the pattern of 128 bytes that the copy engine writes.
DEVICE u64 operand(u32 address) {
    return (u64)((address & 0x3FFFF) >> 4) | 1ull << 16 | 64ull << 32 | 1ull << 62;
}

#define LIST_16 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"
#define LIST_32 LIST_16 ", " \
               "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define LIST_64 LIST_32 ", " \
               "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
               "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define HELD_4(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define HELD_16(i) HELD_4(i), HELD_4(i + 4), HELD_4(i + 8), HELD_4(i + 12)
#define HELD_32(i) HELD_16(i), HELD_16(i + 16)
#define PRODUCT(n, list, a0, a1, a2, a3, b, is_added, ...)                               \
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, " is_added ", 0;\n"                   \
                 "wgmma.mma_async.sync.aligned.m64n" n "k16.f32." FLOAT "." FLOAT        \
                 " {" list "}, {" a0 ", " a1 ", " a2 ", " a3 "}, " b ", p, 1, 1, 0;\n}"  \
                 : __VA_ARGS__                                                           \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(x), "r"(is_added_to))

// d += 64 features by ROWS rows over 16 inputs, or = if nothing is to be added to.
DEVICE void multiply(float (&d)[ACCUMULATORS], const u32 (&a)[4], u64 x, int is_added_to) {
#if ROWS == 32
    PRODUCT("32", LIST_16, "%16", "%17", "%18", "%19", "%20", "%21", HELD_16(0));
#elif ROWS == 64
    PRODUCT("64", LIST_32, "%32", "%33", "%34", "%35", "%36", "%37", HELD_32(0));
#elif ROWS == 128
    PRODUCT("128", LIST_64, "%64", "%65", "%66", "%67", "%68", "%69", HELD_32(0), HELD_32(32));
#else
#error "no product for so many rows"
#endif
}

DEVICE Place place_of(const Schedule &s, int tile) {
    const int whole = s.group * s.feature_tiles, first = tile / whole * s.group;
    const int height = min(s.group, s.row_tiles - first), within = tile % whole;
    return {first + within % height, within / height};
}

// The segments of a block, one after another.
struct Work {
    const Schedule &schedule;
    int unit, end, tile;
    DEVICE explicit Work(const Schedule &s) : schedule(s) {
        unit = first_unit(s, blockIdx.x);
        end = first_unit(s, blockIdx.x + 1);
        tile = s.shared_tiles + blockIdx.x;
    }
    DEVICE static int first_unit(const Schedule &s, int block) {
        return (int)((long long)s.shared_tiles * s.steps * block / gridDim.x);
    }
    DEVICE bool next(Segment &segment) {
        const int steps = schedule.steps;
        if (unit < end) {
            const int found = unit / steps, begin = unit - found * steps;
            const int until = min(steps, begin + end - unit);
            segment = {found, begin, until};
            unit += until - begin;
            return true;
        }
        if (tile >= schedule.row_tiles * schedule.feature_tiles) return false;
        segment = {tile, 0, steps};
        tile += gridDim.x;
        return true;
    }
};

struct Pipeline {
    u32 x, w, scales, full, empty;  // addresses in shared memory
    int stage;
    u32 phase;
    DEVICE u32 is_full() const { return full + stage * 8; }
    DEVICE u32 is_empty() const { return empty + stage * 8; }
    DEVICE void step() {
        if (++stage == STAGES) stage = 0, phase ^= 1;
    }
};

DEVICE void load_x(const Pipeline &p, const TensorMap *x_map, int step, int row) {
    const u32 target = p.x + p.stage * X_BYTES;
    for (int half = 0; half < 2; ++half)
        load_tile(target + half * HALF_BYTES, x_map, p.is_full(), step * STEP + half * 64,
                  row * ROWS);
}

DEVICE void load_w(const Pipeline &p, const TensorMap *w_map, const TensorMap *scale_map, int step,
                   int feature) {
    load_tile(p.w + p.stage * W_BYTES, w_map, p.is_full(), step * (STEP * 2), feature * TILES);
    load_tile(p.scales + p.stage * SCALE_BYTES, scale_map, p.is_full(), step * STEP_GROUPS * 16,
              feature * TILES);
}

// Steps of a block's segments, one after another.
struct Cursor {
    Work work;
    Segment segment;
    Place at;
    int step;
    DEVICE explicit Cursor(const Schedule &s) : work(s), segment{0, 0, 0}, at{0, 0}, step(0) {}
    DEVICE bool next() {
        if (++step < segment.end) return true;
        if (!work.next(segment)) return false;
        step = segment.begin;
        at = place_of(work.schedule, segment.tile);
        return true;
    }
};

DEVICE void produce(Pipeline p, const TensorMap *w_map, const TensorMap *scale_map,
                    const TensorMap *x_map, const Schedule &schedule) {
    // Weights of the first stages do not wait for what earlier kernels compute.
    int num_early = 0;
    Pipeline ahead = p;
    for (Cursor early(schedule); num_early < STAGES && early.next(); ++num_early) {
        expect_bytes(ahead.is_full(), STAGE_BYTES);
        load_w(ahead, w_map, scale_map, early.step, early.at.feature);
        ahead.step();
    }
    wait_for_inputs();
    for (Cursor cursor(schedule); cursor.next(); p.step()) {
        if (num_early) {
            --num_early;
        } else {
            wait_for(p.is_empty(), p.phase ^ 1);
            expect_bytes(p.is_full(), STAGE_BYTES);
            load_w(p, w_map, scale_map, cursor.step, cursor.at.feature);
        }
        load_x(p, x_map, cursor.step, cursor.at.row);
    }
}

// Shares of a tile lie in global memory, each thread's four accumulators of 8 rows together.
struct Shares {
    float4 *values;
    u32 *arrivals;
    int consumer, thread;
    bool is_untold;  // this block's share is on its way, and nobody has been told
    DEVICE float4 *of(int block) const {
        return values + ((long long)block * CONSUMERS + consumer) * (ROWS / 8) * 128 + thread;
    }
    DEVICE void hand_over(const float (&d)[ACCUMULATORS]) {
        float4 *target = of(blockIdx.x);
#pragma unroll
        for (int j = 0; j < ROWS / 8; ++j)
            __stcg(target + j * 128,
                   make_float4(d[4 * j], d[4 * j + 1], d[4 * j + 2], d[4 * j + 3]));
        is_untold = true;
    }
    DEVICE void tell() {
        if (!is_untold) return;
        is_untold = false;
        sync_warpgroup(consumer);
        if (thread == 0)
            asm volatile("fence.acq_rel.gpu;\nst.relaxed.gpu.global.u32 [%0], 1;"
                         ::"l"(arrivals + blockIdx.x * CONSUMERS + consumer) : "memory");
    }
    DEVICE void take(float (&d)[ACCUMULATORS], int block) {
        if (thread == 0) {
            u32 *arrival = arrivals + block * CONSUMERS + consumer, has_come = 0;
            while (!has_come)
                asm volatile("ld.acquire.gpu.global.u32 %0, [%1];"
                             : "=r"(has_come) : "l"(arrival) : "memory");
            *arrival = 0;  // for the next launch
        }
        sync_warpgroup(consumer);
        const float4 *source = of(block);
#pragma unroll
        for (int j = 0; j < ROWS / 8; ++j) {
            const float4 share = __ldcg(source + j * 128);
            d[4 * j] += share.x, d[4 * j + 1] += share.y;
            d[4 * j + 2] += share.z, d[4 * j + 3] += share.w;
        }
    }
};

constexpr int TELL_AFTER = 4;  // steps, in which a share reaches the cache

// a * 1 + b, exact for the small integers here.
DEVICE u32 add_pair(u32 a, u32 b) {
    u32 d;
    asm("fma.rn." FLOAT "x2 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(ONE), "r"(b));
    return d;
}

DEVICE u32 pair_at(u32 word, int place) {
    return ((word >> place) & 0x000f000fu) | (MAGIC * 0x10001u);
}

// -(MAGIC + z), twice; z stands in the scale's lowest five bits.
DEVICE u32 minus_zero(u32 scale) {
    return ((MAGIC + (scale & 31u)) * 0x10001u) ^ 0x80008000u;
}

DEVICE float scale_of(u32 scale) { return __uint_as_float(scale & ~31u); }

DEVICE void read_four(u32 *v, u32 address) {
    asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v[0]), "=r"(v[1]), "=r"(v[2]), "=r"(v[3]) : "r"(address));
}

DEVICE u32 read_one(u32 address) {
    u32 v;
    asm volatile("ld.shared.u32 %0, [%1];" : "=r"(v) : "r"(address));
    return v;
}

// One group of a stage: its products are summed up apart, for the scale is of the sum.
DEVICE void add_group(float (&d)[ACCUMULATORS], const u32 (&words)[8], u32 low, u32 high, int group,
                      u64 x) {
    constexpr int SLICES = GROUP / 16;
    float part[ACCUMULATORS];
    u32 a[SLICES][4];
    const u32 minus_low = minus_zero(low), minus_high = minus_zero(high);
#pragma unroll
    for (int i = 0; i < SLICES; ++i)
#pragma unroll
        for (int r = 0; r < 4; ++r)
            a[i][r] = add_pair(pair_at(words[group * SLICES + i], 4 * r),
                               r % 2 ? minus_high : minus_low);
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#pragma unroll
    for (int i = 0; i < SLICES; ++i) {
        const int slice = group * SLICES + i;
        multiply(part, a[i], x + slice / 4 * (HALF_BYTES >> 4) + slice % 4 * 2, i);
    }
    asm volatile("wgmma.commit_group.sync.aligned;\nwgmma.wait_group.sync.aligned 0;" ::: "memory");
    const float of_low = scale_of(low), of_high = scale_of(high);
#pragma unroll
    for (int j = 0; j < ROWS / 8; ++j) {
        d[4 * j] += of_low * part[4 * j], d[4 * j + 1] += of_low * part[4 * j + 1];
        d[4 * j + 2] += of_high * part[4 * j + 2], d[4 * j + 3] += of_high * part[4 * j + 3];
    }
}

DEVICE void compute(float (&d)[ACCUMULATORS], Pipeline &p, int num_steps, Shares &shares) {
    const int thread = shares.thread, lane = thread % 32;
    const int tile = shares.consumer * 4 + thread / 32;
    for (int step = 0; step < num_steps; ++step) {
        wait_for(p.is_full(), p.phase);
        const u32 at = p.w + p.stage * W_BYTES + tile * (STEP * 8) + lane * 16;
        u32 words[8];
        read_four(words, at);
        read_four(words + 4, at + 512);
        const u32 scales =
            p.scales + p.stage * SCALE_BYTES + tile * STEP_GROUPS * 64 + lane / 4 * 4;
        const u64 x = operand(p.x + p.stage * X_BYTES);
#pragma unroll
        for (int group = 0; group < STEP_GROUPS; ++group) {
            const u32 at_group = scales + group * 64;
            add_group(d, words, read_one(at_group), read_one(at_group + 32), group, x);
        }
        if (thread == 0) arrive_at(p.is_empty());
        p.step();
        if (step == TELL_AFTER) shares.tell();
    }
    shares.tell();
}

// Adds what other blocks computed of a tile: what they have long finished when this one begins it
// (`is_early`), or the rest.
DEVICE void add_shares(float (&d)[ACCUMULATORS], const Schedule &schedule, int tile, bool is_early,
                       Shares &shares) {
    const int end = (tile + 1) * schedule.steps;
    const int begun = tile * schedule.steps - Work::first_unit(schedule, blockIdx.x);
    for (int other = blockIdx.x + 1; other < gridDim.x; ++other) {
        const int first = Work::first_unit(schedule, other);
        const int last = min(end, Work::first_unit(schedule, other + 1));
        if (first >= end) break;
        if (first < last && (last - first + 2 * TELL_AFTER <= begun) == is_early)
            shares.take(d, other);
    }
}

DEVICE u32 rounded(float low, float high) {
    u32 pair;
#if IS_BFLOAT16
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
#else
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
#endif
    return pair;
}

DEVICE float widened(u16 value) {
    float wide;
    asm("cvt.f32." FLOAT " %0, %1;" : "=f"(wide) : "h"(value));
    return wide;
}

DEVICE void store_transposed(u32 address, u32 a, u32 b, u32 c, u32 d) {
    asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};"
                 ::"r"(address), "r"(a), "r"(b), "r"(c), "r"(d) : "memory");
}

// Two blocks of 8 rows, beginning with block `j`.
DEVICE void stage_blocks(const float (&d)[ACCUMULATORS], int j, u32 target, int warp, int lane) {
    const int matrix = lane / 8, at = 4 * j, column = warp * 2 + matrix % 2;
    const int row = j % (CHUNK / 8) * 8 + matrix / 2 * 8 + lane % 8;
    store_transposed(target + row * 128 + ((column ^ (row & 7)) << 4),
                     rounded(d[at], d[at + 1]), rounded(d[at + 2], d[at + 3]),
                     rounded(d[at + 4], d[at + 5]), rounded(d[at + 6], d[at + 7]));
}

DEVICE void store(const float (&d)[ACCUMULATORS], const TensorMap *y_map, u32 buffers, int feature,
                  int row, int num_rows, int consumer, int thread) {
    const int warp = thread / 32, lane = thread % 32;
#pragma unroll
    for (int chunk = 0; chunk < ROWS / CHUNK; ++chunk) {
        if (row + chunk * CHUNK >= num_rows) return;
        const u32 target = buffers + chunk % 2 * CHUNK_BYTES;
        // One of two buffers is free; at first both, for a tile's last chunk may lie in either.
        if (thread == 0 && chunk) asm volatile("cp.async.bulk.wait_group.read 1;" ::: "memory");
        if (thread == 0 && !chunk) asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory");
        sync_warpgroup(consumer);
#pragma unroll
        for (int j = 0; j < CHUNK / 8; j += 2)
            stage_blocks(d, chunk * (CHUNK / 8) + j, target, warp, lane);
        asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
        sync_warpgroup(consumer);
        if (thread == 0) store_tile(y_map, target, feature, row + chunk * CHUNK);
    }
}

DEVICE void add_bias(float (&d)[ACCUMULATORS], const u16 *bias, int feature, int thread,
                     int num_features) {
    const int first = feature + thread / 32 * 16 + thread % 32 / 4;
    if (first >= num_features) return;  // whole tiles of 16
    const float low = widened(bias[first]), high = widened(bias[first + 8]);
#pragma unroll
    for (int j = 0; j < ROWS / 8; ++j) {
        d[4 * j] += low, d[4 * j + 1] += low;
        d[4 * j + 2] += high, d[4 * j + 3] += high;
    }
}

DEVICE void consume(Pipeline p, const TensorMap *y_map, u32 buffers, const u16 *bias,
                    float4 *values, u32 *arrivals, const Schedule &schedule, int num_rows,
                    int num_features) {
    const int consumer = threadIdx.x / 128 - 1, thread = threadIdx.x % 128;
    Shares shares{values, arrivals, consumer, thread, false};
    wait_for_inputs();
    Work work(schedule);
    for (Segment s; work.next(s);) {
        float d[ACCUMULATORS] = {};
        const bool is_begun = s.begin > 0, is_unfinished = s.end < schedule.steps;
        if (!is_begun && is_unfinished) {
            shares.tell();  // nobody waits for who waits
            add_shares(d, schedule, s.tile, true, shares);
        }
        compute(d, p, s.end - s.begin, shares);
        if (is_begun) {
            shares.hand_over(d);
            continue;
        }
        if (is_unfinished) add_shares(d, schedule, s.tile, false, shares);
        const Place at = place_of(schedule, s.tile);
        const int feature = (at.feature * CONSUMERS + consumer) * 64;
        if (bias) add_bias(d, bias, feature, thread, num_features);
        store(d, y_map, buffers + consumer * 2 * CHUNK_BYTES, feature, at.row * ROWS, num_rows,
              consumer, thread);
    }
    shares.tell();
    if (thread == 0) asm volatile("cp.async.bulk.wait_group 0;" ::: "memory");
}

// Grid: blocks, all of which must be on the device at once.
extern "C" __global__ void __launch_bounds__(THREADS, 1)
    int4_wgmma(const __grid_constant__ TensorMap w_map, const __grid_constant__ TensorMap scale_map,
               const __grid_constant__ TensorMap x_map, const __grid_constant__ TensorMap y_map,
               const u16 *bias, float4 *shares, u32 *arrivals,
               const __grid_constant__ Schedule schedule, int num_rows, int num_features) {
    extern __shared__ unsigned char unaligned[];
    const u32 memory = (shared_address(unaligned) + 1023) & ~1023u;
    const u32 buffers = memory + STAGES * X_BYTES, w = buffers + CONSUMERS * 2 * CHUNK_BYTES;
    const u32 scales = w + STAGES * W_BYTES, barriers = scales + STAGES * SCALE_BYTES;
    const Pipeline p = {memory, w, scales, barriers, barriers + STAGES * 8, 0, 0};
    if (threadIdx.x == 0) {
        for (int i = 0; i < STAGES; ++i) {
            set_arrivals(p.full + i * 8, 1);
            set_arrivals(p.empty + i * 8, CONSUMERS);
        }
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
    __syncthreads();
    let_next_start();
    if (threadIdx.x < 128) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
        if (threadIdx.x == 0) produce(p, &w_map, &scale_map, &x_map, schedule);
    } else {
        asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(CONSUMERS == 2 ? 232 : 152));
        consume(p, &y_map, buffers, bias, shares, arrivals, schedule, num_rows, num_features);
    }
}
