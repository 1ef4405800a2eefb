// y = x W^T + b where one sum runs over many inputs: bfloat16 in pairs, int8 in quads. Included by
// isa.cpp.
//
// Weights and x both come in words of 32 bits: two neighbouring inputs of bfloat16, or four of int8.
// A panel is [words of K][kPanel], x is in tiles as in rounding.h: [words of K][rows of the tile].
// Sums of int8 run over a span of x. A panel's scales follow its words: [spans of weights][kPanel].
// An instruction multiplies a vector of weights with one word of x that is the same in all lanes.
// Two panels at a time: each word of x is then used twice as often as it is loaded.

#if defined(__AVX512BF16__)
struct Bf16Words {
  static constexpr int kInputs = 2;
  using Sum = F;
  static Sum none() { return zero(); }
  static Sum join(Sum a, Sum b) { return a + b; }
  static Sum add(Sum sum, I weights, int32_t x) {
    return _mm512_dpbf16_ps(sum, (__m512bh)weights, (__m512bh)splat_word(x));
  }
};
#elif defined(CHIPLET_TILES_MODEL)
struct Bf16Words {
  static constexpr int kInputs = 2;
  using Sum = F;
  static Sum none() { return zero(); }
  static Sum join(Sum a, Sum b) { return a + b; }
  static Sum add(Sum sum, I weights, int32_t x) {
    I same = splat_word(x);
    return sum + low_bf16(weights) * low_bf16(same) + high_bf16(weights) * high_bf16(same);
  }
};
#endif

struct Int8Words {
  static constexpr int kInputs = 4;
  using Sum = I;
  static Sum none() { return zero_words(); }
  static Sum join(Sum a, Sum b) { return add_words(a, b); }
  static Sum add(Sum sum, I weights, int32_t x) { return dot<false>(sum, weights, splat_word(x)); }
};

// Loops over sums are unrolled by word, or some compilers keep the sums in memory.
#define CHIPLET_UNROLL _Pragma("GCC unroll 32")

// sums[R][P * V]: P panels, `stride` bytes apart, times a tile of R rows. Not inlined, or some
// compilers keep the sums in memory once their use is unrolled too.
template <class Words, int R, int P>
[[gnu::noinline]] static void word_product(const uint8_t* panel, int64_t stride, int64_t words,
                                const int32_t* x, typename Words::Sum* sums) {
  constexpr int C = P * V, N = R * C;
  constexpr int U = N >= 8 ? 1 : 4;  // chains that hide the latency of few rows
  typename Words::Sum total[U * N];
  CHIPLET_UNROLL for (int i = 0; i < U * N; ++i) total[i] = Words::none();
  auto step = [&](int u, int64_t k) {
    I weights[C];
    CHIPLET_UNROLL for (int c = 0; c < C; ++c) {
      const uint8_t* at = panel + c / V * stride + k * kQuad + c % V * 4 * W;
      if (R <= 2) __builtin_prefetch(at + 2048);
      weights[c] = load_bytes(at);
    }
    CHIPLET_UNROLL for (int i = 0; i < N; ++i) {
      total[u * N + i] = Words::add(total[u * N + i], weights[i % C], x[k * R + i / C]);
    }
  };
  int64_t k = 0;
  for (; k + U <= words; k += U) {
    CHIPLET_UNROLL for (int u = 0; u < U; ++u) step(u, k + u);
  }
  if (U > 1) {
    for (; k < words; ++k) step(0, k);
  }
  CHIPLET_UNROLL for (int i = 0; i < N; ++i) {
    auto sum = total[i];
    CHIPLET_UNROLL for (int u = 1; u < U; ++u) sum = Words::join(sum, total[u * N + i]);
    sums[i] = sum;
  }
}

// Calls `use(row, column, sums)` with the F or I of every row and vector of outputs.
template <class Words, int R, int P, class Use>
static void word_tile(int rows, const uint8_t* panel, int64_t stride, int64_t words,
                      const int32_t* x, Use use) {
  if (rows == R) {
    alignas(64) typename Words::Sum sums[R * P * V];
    word_product<Words, R, P>(panel, stride, words, x, sums);
    CHIPLET_UNROLL for (int i = 0; i < R * P * V; ++i) use(i / (P * V), i % (P * V), sums[i]);
  } else if constexpr (R > 1) {
    word_tile<Words, R - 1, P>(rows, panel, stride, words, x, use);
  }
}

constexpr int kVectorPanels = W == 16 ? 2 : 1;  // as many as registers hold
constexpr int kMostPanels = 2;                  // that any product takes at once

// Panels as they are read: `stride` bytes apart.
struct PanelRun {
  const uint8_t* first;
  int64_t stride;
};

// How a sum is added to `before`: a row of x, span s, vector v of a panel.
struct PlainSums {
  F operator()(const uint8_t*, int64_t, int64_t, int, F sum, F before) const {
    return before + sum;
  }
};
struct ScaledSums {
  const WordArgs& x;
  int64_t spans;        // of x, in a row
  int64_t weight_span;  // inputs
  F operator()(const uint8_t* panel, int64_t row, int64_t s, int v, I sum, F before) const {
    const float* scales = (const float*)(panel + x.words * kQuad);
    F scale = load(scales + s * x.span / weight_span * kPanel + v * W);
    I whole = add_words(sum, splat_word(x.offsets[row * spans + s]));
    return fma(to_float(whole) * scale, splat(x.scales[row * spans + s]), before);
  }
};

// out[kPanels][kRows * kPanel]: a tile of rows times some panels.
template <class Words>
struct WordProduct {
  static constexpr int kRows = kCodeRows, kPanels = kVectorPanels;

  template <class ToResults>
  static void run(const WordArgs& x, PanelRun run, int panels, int64_t row, int rows,
                  ToResults to_results, float (*out)[kRows * kPanel]) {
    int64_t step = x.span / Words::kInputs;
    for (int64_t s = 0, first = 0; first < x.words; ++s, first += step) {
      int64_t words = x.words - first < step ? x.words - first : step;
      auto use = [&](int r, int c, auto sum) {
        const uint8_t* panel = run.first + c / V * run.stride;
        float* at = out[c / V] + r * kPanel + c % V * W;
        store(at, to_results(panel, row + r, s, c % V, sum, s ? load(at) : zero()));
      };
      const uint8_t* from = run.first + first * kQuad;
      const int32_t* tile = x.x_words + row * x.row_words + first * rows;
      if (panels == kPanels) {
        word_tile<Words, kRows, kPanels>(rows, from, run.stride, words, tile, use);
      } else {
        word_tile<Words, kRows, 1>(rows, from, run.stride, words, tile, use);
      }
    }
  }
};

#if defined(CHIPLET_TILES)
#include "tile_linear.h"
#endif

// Blocks of rows whose words stay in the second-level cache.
template <class Product>
static inline int64_t rows_at_once(const WordArgs& x) {
  int64_t most = kCodesBytes / (4 * x.words) / Product::kRows * Product::kRows;
  return most < Product::kRows ? Product::kRows : most;
}

// As product_panels: of gates, each with the panel of what it is for.
template <class Product, class Source, class ToResults>
static void gated_panels(Dtype dtype, const LinearArgs& a, const WordArgs& x, int64_t begin,
                         int64_t end, Source source, ToResults to_results) {
  constexpr int kRows = Product::kRows;
  alignas(64) float out[2][kRows * kPanel];
  int64_t block = rows_at_once<Product>(x);
  bool is_joint = Product::kPanels > 1 && a.rows > 2;
  for (int64_t first = 0; first < a.rows; first += block) {
    int64_t last = a.rows - first < block ? a.rows : first + block;
    for (int64_t panel = begin; panel < end; ++panel) {
      PanelRun gate = source(panel, 2), up{gate.first + gate.stride, gate.stride};
      for (int64_t row = first; row < last; row += kRows) {
        int rows = a.rows - row < kRows ? (int)(a.rows - row) : kRows;
        Product::run(x, gate, 1 + is_joint, row, rows, to_results, out);
        if (!is_joint) Product::run(x, up, 1, row, rows, to_results, out + 1);
        CHIPLET_DISPATCH(dtype, T,
                         finish_gated<T>(a, row, rows, panel * kPanel, out[0], out[1]))
      }
    }
  }
}

// Panels [begin, end). `source(panel, count)` gives panels to read: one after another, or a gate's
// and that of what it is for.
template <class Product, class Source, class ToResults>
static void product_panels(Dtype dtype, const LinearArgs& a, const WordArgs& x, int64_t begin,
                           int64_t end, Source source, ToResults to_results) {
  if (a.is_gated) {
    return gated_panels<Product>(dtype, a, x, begin, end, source, to_results);
  }
  constexpr int kRows = Product::kRows;
  alignas(64) float out[Product::kPanels][kRows * kPanel];
  int64_t block = rows_at_once<Product>(x);
  // Few rows read panels one after another, as memory is read best.
  int at_once = a.rows <= 2 ? 1 : Product::kPanels;
  for (int64_t first = 0; first < a.rows; first += block) {
    int64_t last = a.rows - first < block ? a.rows : first + block;
    for (int64_t panel = begin; panel < end; panel += at_once) {
      int panels = end - panel < at_once ? (int)(end - panel) : at_once;
      PanelRun run = source(panel, panels);
      for (int64_t row = first; row < last; row += kRows) {
        int rows = a.rows - row < kRows ? (int)(a.rows - row) : kRows;
        Product::run(x, run, panels, row, rows, to_results, out);
        for (int p = 0; p < panels; ++p) {
          CHIPLET_DISPATCH(dtype, T, finish<T>(a, row, rows, (panel + p) * kPanel, out[p]))
        }
      }
    }
  }
}

template <class Words, class Source, class ToResults>
static void word_panels(Dtype dtype, const LinearArgs& a, const WordArgs& x, int64_t begin,
                        int64_t end, Source source, ToResults to_results) {
#if defined(CHIPLET_TILES)
  if (x.is_tiled) {
    Tiles::begin(tile_words<Words>(x));
    product_panels<TileProduct<Words>>(dtype, a, x, begin, end, source, to_results);
    return Tiles::end();
  }
#endif
  product_panels<WordProduct<Words>>(dtype, a, x, begin, end, source, to_results);
}

// From a panel to the one that is worked on with it.
static inline int64_t panel_step(const LinearArgs& a) { return a.is_gated ? a.n / kPanel : 1; }

static PanelRun packed_panels(const LinearArgs& a, int64_t panel) {
  return {(const uint8_t*)a.panels + panel * a.panel_bytes, panel_step(a) * a.panel_bytes};
}

static void int8_channels(Dtype dtype, const LinearArgs& a, const WordArgs& x, int64_t begin,
                          int64_t end) {
  auto source = [&](int64_t panel, int) { return packed_panels(a, panel); };
  ScaledSums results{x, 1, x.span};
  word_panels<Int8Words>(dtype, a, x, begin, end, source, results);
}

// Blocks rounded to spans; called where there are tiles.
static void int8_spans(Dtype dtype, const LinearArgs& a, const WordArgs& x, int64_t begin,
                       int64_t end) {
  int64_t stride = rounded_bytes(a.k);
  auto* rounded = (uint8_t*)pool::own_memory(kMostPanels * stride);
  with_blocks(a.coding, [&](auto blocks) {
    auto source = [&](int64_t panel, int count) {
      for (int p = 0; p < count; ++p) {
        int64_t at = panel + p * panel_step(a);
        const uint8_t* packed = (const uint8_t*)a.panels + at * a.panel_bytes;
        round_panel<decltype(blocks)>(packed, a.k, rounded + p * stride);
      }
      return PanelRun{rounded, stride};
    };
    ScaledSums results{x, num_spans(x), weight_span(a.k)};
    word_panels<Int8Words>(dtype, a, x, begin, end, source, results);
  });
}

static void bf16_linear(Dtype dtype, const LinearArgs& a, const WordArgs& x, int64_t begin,
                        int64_t end) {
#if defined(__AVX512BF16__) || defined(CHIPLET_TILES_MODEL)
  auto source = [&](int64_t panel, int) { return packed_panels(a, panel); };
  word_panels<Bf16Words>(dtype, a, x, begin, end, source, PlainSums{});
#else
  (void)dtype, (void)a, (void)x, (void)begin, (void)end;  // never called: see has_bf16_words
#endif
}

constexpr bool kHasBf16Words =
#if defined(__AVX512BF16__) || defined(CHIPLET_TILES_MODEL)
    true;
#else
    false;
#endif

constexpr bool kHasTiles =
#if defined(CHIPLET_TILES)
    true;
#else
    false;
#endif
