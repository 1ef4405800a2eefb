// y = x W^T + b with x rounded to eight bits, in whole-number products. Included by isa.cpp.
//
// Each group of inputs of a row gets a scale a = max |x| / 127 and codes c = round(x / a). With a
// weight of s (q - z) + m, the group adds a s sum(c (q - z)) + a m sum(c) to an output: one sum of
// whole numbers, two products. Codes stand in tiles of rows; see rounding.h.

// Rows whose codes stay in the second-level cache while panels pass by.
constexpr int64_t kCodesBytes = 384 << 10;

struct Codes {
  const int32_t* codes;
  const float* scales;
  const float* sums;  // a sum(c), or -z sum(c) as int32 where there are no minima
};

// All quads of a group, low and high halves of the same bytes after one another.
template <class B, int R, int step = 0>
static inline void add_quads(const uint8_t* block, int g, int v, const int32_t* x, I* sums) {
  constexpr int kSteps = B::kGroup / 4;
  if constexpr (step < kSteps) {
    constexpr int j = kSteps == 8 ? step / 2 + step % 2 * 4 : step;
    I codes = B::template codes<j>(block, g, v);
    for (int r = 0; r < R; ++r) {
      sums[r] = dot<B::kIsSmall>(sums[r], codes, splat_word(x[j * R + r]));
    }
    add_quads<B, R, step + 1>(block, g, v, x, sums);
  }
}

// out[R, kPanel]: vector v of a panel times a tile.
template <class B, int R>
static void int8_product(const uint8_t* panel, int v, int64_t k, Codes x, float* out) {
  constexpr int kGroups = B::kBlock / B::kGroup;
  F total[R];
  for (int r = 0; r < R; ++r) total[r] = zero();
  for (int64_t begin = 0; begin < k; begin += B::kBlock, panel += B::kBytes) {
    if constexpr (R <= 2) {
      // What the processor's own prefetching misses at the start of each page.
      for (int i = 0; i < B::kBytes; i += 64) __builtin_prefetch(panel + 2048 + i);
    }
    for (int g = 0; g < kGroups; ++g) {
      I sums[R];
      for (int r = 0; r < R; ++r) {
        sums[r] = B::kZero ? splat_word(((const int32_t*)x.sums)[r]) : zero_words();
      }
      add_quads<B, R>(panel, g, v, x.codes, sums);
      F scale = B::scale(panel, g, v);
      F minimum = B::minimum(panel, g, v);
      for (int r = 0; r < R; ++r) {
        total[r] = fma(to_float(sums[r]) * scale, splat(x.scales[r]), total[r]);
        if (B::kHasMinima) total[r] = fma(minimum, splat(x.sums[r]), total[r]);
      }
      x.codes += B::kGroup / 4 * R;
      x.scales += R;
      x.sums += R;
    }
  }
  for (int r = 0; r < R; ++r) store(out + r * kPanel + v * W, total[r]);
}

template <class B, int R>
static void int8_tile(int rows, const uint8_t* panel, int64_t k, Codes x, float* out) {
  if (rows == R) {
    for (int v = 0; v < V; ++v) int8_product<B, R>(panel, v, k, x, out);
  } else if constexpr (R > 1) {
    int8_tile<B, R - 1>(rows, panel, k, x, out);
  }
}

template <class B>
static void int8_panels(Dtype dtype, const LinearArgs& a, Codes x, int64_t begin, int64_t end) {
  alignas(64) float sums[2][kCodeRows * kPanel];
  int64_t groups = a.k / B::kGroup;
  int64_t most = kCodesBytes / a.k / kCodeRows * kCodeRows;
  int64_t step = most < kCodeRows ? kCodeRows : most;
  for (int64_t first = 0; first < a.rows; first += step) {
    int64_t last = a.rows - first < step ? a.rows : first + step;
    for (int64_t panel = begin; panel < end; ++panel) {
      const uint8_t* packed = (const uint8_t*)a.panels + panel * a.panel_bytes;
      for (int64_t row = first; row < last; row += kCodeRows) {
        int rows = a.rows - row < kCodeRows ? (int)(a.rows - row) : kCodeRows;
        Codes tile{x.codes + row * a.k / 4, x.scales + row * groups, x.sums + row * groups};
        int64_t column = panel * kPanel;
        int8_tile<B, kCodeRows>(rows, packed, a.k, tile, sums[0]);
        if (a.is_gated) {
          const uint8_t* ups = packed + a.n / kPanel * a.panel_bytes;
          int8_tile<B, kCodeRows>(rows, ups, a.k, tile, sums[1]);
          CHIPLET_DISPATCH(dtype, T, finish_gated<T>(a, row, rows, column, sums[0], sums[1]))
        } else {
          CHIPLET_DISPATCH(dtype, T, finish<T>(a, row, rows, column, sums[0]))
        }
      }
    }
  }
}

static void int8_linear(Dtype dtype, const LinearArgs& a, const QuantizeArgs& x, int64_t begin,
                        int64_t end) {
  with_blocks(a.coding, [&](auto blocks) {
    int8_panels<decltype(blocks)>(dtype, a, Codes{x.codes, x.scales, x.sums}, begin, end);
  });
}
