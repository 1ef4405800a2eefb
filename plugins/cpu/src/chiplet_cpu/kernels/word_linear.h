// y = x W^T + b where one sum runs over all inputs: bfloat16 in pairs, int8 in quads. Included by
// isa.cpp.
//
// Weights and x both come in words of 32 bits: two neighbouring inputs of bfloat16, or four of int8.
// A panel is [words of K][kPanel], x is in tiles as in int8_linear.h: [words of K][rows of the tile].
// An instruction multiplies a vector of weights with one word of x that is the same in all lanes.
// Two panels at a time: each word of x is then used twice as often as it is loaded.

#if defined(__AVX512BF16__)
struct Bf16Words {
  using Sum = F;
  static Sum none() { return zero(); }
  static Sum join(Sum a, Sum b) { return a + b; }
  static Sum add(Sum sum, I weights, int32_t x) {
    return _mm512_dpbf16_ps(sum, (__m512bh)weights, (__m512bh)splat_word(x));
  }
};
#endif

struct Int8Words {
  using Sum = I;
  static Sum none() { return zero_words(); }
  static Sum join(Sum a, Sum b) { return add_words(a, b); }
  static Sum add(Sum sum, I weights, int32_t x) { return dot<false>(sum, weights, splat_word(x)); }
};

// Loops over sums are unrolled by word, or some compilers keep the sums in memory.
#define CHIPLET_UNROLL _Pragma("GCC unroll 32")

// sums[R][P * V]: P panels, `stride` bytes apart, times a tile of R rows.
template <class Words, int R, int P>
static inline void word_product(const uint8_t* panel, int64_t stride, int64_t words,
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
    for (int i = 0; i < R * P * V; ++i) use(i / (P * V), i % (P * V), sums[i]);
  } else if constexpr (R > 1) {
    word_tile<Words, R - 1, P>(rows, panel, stride, words, x, use);
  }
}

constexpr int kPanels = W == 16 ? 2 : 1;  // panels of a tile, as many as registers hold

// Panels [begin, end), in blocks of rows whose words stay in the second-level cache.
// `to_floats(row, panel, v, sum)` makes results of vector v of a panel.
template <class Words, class ToFloats>
static void word_panels(Dtype dtype, const LinearArgs& a, int64_t words, const int32_t* x,
                        int64_t begin, int64_t end, ToFloats to_floats) {
  alignas(64) float out[kPanels][kCodeRows * kPanel];
  int64_t most = kCodesBytes / (4 * words) / kCodeRows * kCodeRows;
  int64_t block = most < kCodeRows ? kCodeRows : most;
  for (int64_t first = 0; first < a.rows; first += block) {
    int64_t last = a.rows - first < block ? a.rows : first + block;
    for (int64_t panel = begin; panel < end; panel += kPanels) {
      const uint8_t* packed = (const uint8_t*)a.panels + panel * a.panel_bytes;
      int panels = end - panel < kPanels ? (int)(end - panel) : kPanels;
      for (int64_t row = first; row < last; row += kCodeRows) {
        int rows = a.rows - row < kCodeRows ? (int)(a.rows - row) : kCodeRows;
        auto use = [&](int r, int c, auto sum) {
          F values = to_floats(row + r, panel + c / V, c % V, sum);
          store(out[c / V] + r * kPanel + c % V * W, values);
        };
        const int32_t* tile = x + row * words;
        if (panels == kPanels) {
          word_tile<Words, kCodeRows, kPanels>(rows, packed, a.panel_bytes, words, tile, use);
        } else {
          word_tile<Words, kCodeRows, 1>(rows, packed, a.panel_bytes, words, tile, use);
        }
        for (int p = 0; p < panels; ++p) {
          CHIPLET_DISPATCH(dtype, T, finish<T>(a, row, rows, (panel + p) * kPanel, out[p]))
        }
      }
    }
  }
}

// int8: after its words a panel has a scale for each output.
static void int8_channels(Dtype dtype, const LinearArgs& a, const WordArgs& x, int64_t begin,
                          int64_t end) {
  auto to_floats = [&](int64_t row, int64_t panel, int v, I sum) {
    const uint8_t* packed = (const uint8_t*)a.panels + panel * a.panel_bytes;
    F scale = load((const float*)(packed + x.words * kQuad) + v * W);
    return to_float(add_words(sum, splat_word(x.offsets[row]))) * (scale * splat(x.scales[row]));
  };
  word_panels<Int8Words>(dtype, a, x.words, x.x_words, begin, end, to_floats);
}

static void bf16_linear(Dtype dtype, const LinearArgs& a, const WordArgs& x, int64_t begin,
                        int64_t end) {
#if defined(__AVX512BF16__)
  auto to_floats = [](int64_t, int64_t, int, F sum) { return sum; };
  word_panels<Bf16Words>(dtype, a, x.words, x.x_words, begin, end, to_floats);
#else
  (void)dtype, (void)a, (void)x, (void)begin, (void)end;  // never called: see has_bf16_words
#endif
}

constexpr bool kHasBf16Words =
#if defined(__AVX512BF16__)
    true;
#else
    false;
#endif

// Tiles [begin, end) of rows of bfloat16 as words.
static void pair_rows(const WordArgs& a, int64_t begin, int64_t end) {
  for (int64_t tile = begin; tile < end; ++tile) {
    int64_t first = tile * kCodeRows, left = a.rows - first;
    int rows = left < kCodeRows ? (int)left : kCodeRows;
    int32_t* words = a.x_words + first * a.words;
    for (int r = 0; r < rows; ++r) {
      const bf16* x = (const bf16*)a.x + (first + r) * a.stride;
      for (int64_t k = 0; k < a.k / 2; ++k) {
        __builtin_memcpy(words + k * rows + r, x + 2 * k, 4);
      }
      if (a.k % 2) words[a.k / 2 * rows + r] = x[a.k - 1].bits;
    }
  }
}

// Tiles [begin, end) of rows rounded to eight bits, with one scale each.
template <class T>
static void quantize_token(const WordArgs& a, int64_t row, int rows, int32_t* words) {
  constexpr int kChunk = 64;
  const T* x = (const T*)a.x + row * a.stride;
  F best = zero();
  each_vector(a.k, [&](int64_t i, auto load, auto) {
    F values = load(x + i);
    best = max(best, max(values, zero() - values));
  });
  float most = largest(best);
  float scale = most > 0 ? most / 127.0f : 1.0f;
  int32_t sum = 0;
  alignas(64) float rounded[kChunk];
  alignas(64) int8_t codes[kChunk];
  for (int64_t k = 0; k < a.k; k += kChunk) {
    int count = a.k - k < kChunk ? (int)(a.k - k) : kChunk;
    each_vector(count, [&](int64_t i, auto load, auto store) {
      store(rounded + i, min(splat(127), max(splat(-127), round(load(x + k + i) / splat(scale)))));
    });
    for (int i = count; i < kChunk; ++i) rounded[i] = 0;
    for (int i = 0; i < kChunk; ++i) {
      codes[i] = (int8_t)(int32_t)rounded[i];
      sum += codes[i];
    }
    for (int i = 0; i < (count + 3) / 4; ++i) {
      __builtin_memcpy(words + (k / 4 + i) * rows, codes + 4 * i, 4);
    }
  }
  a.scales[row] = scale;
  a.offsets[row] = -128 * sum;
}

static void quantize_tokens(Dtype dtype, const WordArgs& a, int64_t begin, int64_t end) {
  for (int64_t tile = begin; tile < end; ++tile) {
    int64_t first = tile * kCodeRows, left = a.rows - first;
    int rows = left < kCodeRows ? (int)left : kCodeRows;
    for (int r = 0; r < rows; ++r) {
      int32_t* words = a.x_words + first * a.words + r;
      CHIPLET_DISPATCH(dtype, T, quantize_token<T>(a, first + r, rows, words))
    }
  }
}
