// Products of query rows, or of weights, with words of the cache. Included by isa.cpp.
//
// A word holds 32 bits: one float32, or a pair of 16-bit numbers. One broadcast word of a row meets a
// vector of words, so that nothing is transposed or summed across lanes.

constexpr int kBlockTokens = 128;  // scores of a block stay in the first-level cache
constexpr int kSecondLevel = 2;     // of the caches, to __builtin_prefetch
constexpr int kTileVectors = W == 16 ? 4 : 2;
constexpr int kTileRows = W == 16 ? 6 : 4;  // as many sums as registers hold

static inline void widen_words(const uint32_t* p, const bf16*, F& low, F& high) {
#if defined(__AVX512F__)
  I words = _mm512_loadu_si512(p);
  low = _mm512_castsi512_ps(_mm512_slli_epi32(words, 16));
  high = _mm512_castsi512_ps(_mm512_and_si512(words, _mm512_set1_epi32((int)0xffff0000)));
#elif defined(__AVX2__)
  I words = _mm256_loadu_si256((const I*)p);
  low = _mm256_castsi256_ps(_mm256_slli_epi32(words, 16));
  high = _mm256_castsi256_ps(_mm256_and_si256(words, _mm256_set1_epi32((int)0xffff0000)));
#else
  for (int i = 0; i < W; ++i) {
    low[i] = float_of(p[i] << 16);
    high[i] = float_of(p[i] & 0xffff0000);
  }
#endif
}

static inline void widen_words(const uint32_t* p, const f16*, F& low, F& high) {
#if defined(__AVX512F__)
  I words = _mm512_loadu_si512(p);
  low = _mm512_cvtph_ps(_mm512_cvtepi32_epi16(words));
  high = _mm512_cvtph_ps(_mm512_cvtepi32_epi16(_mm512_srli_epi32(words, 16)));
#elif defined(__AVX2__)
  I words = _mm256_loadu_si256((const I*)p);
  auto narrowed = [](I x) {
    I packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(x, x), 0x08);
    return _mm256_cvtph_ps(_mm256_castsi256_si128(packed));
  };
  low = narrowed(_mm256_and_si256(words, _mm256_set1_epi32(0xffff)));
  high = narrowed(_mm256_srli_epi32(words, 16));
#else
  for (int i = 0; i < W; ++i) {
    low[i] = widen(f16{(uint16_t)p[i]});
    high[i] = widen(f16{(uint16_t)(p[i] >> 16)});
  }
#endif
}

static inline float first_lane(F a) {
#if defined(__AVX512F__)
  return _mm512_cvtss_f32(a);
#elif defined(__AVX2__)
  return _mm256_cvtss_f32(a);
#else
  return a[0];
#endif
}

// How a row meets words of the cache. Row: the type of its elements; kRowWords: those per word.

struct FloatWords {
  using Row = float;
  static constexpr int kPerWord = 1;
  static constexpr int kRowPerWord = 1;
  struct Words {
    F all;
  };
  static Words load_words(const uint32_t* p) { return {load((const float*)p)}; }
  static F add(F sum, const Row* row, const Words& words) {
    return fma(splat(row[0]), words.all, sum);
  }
};

template <class T>
struct WideWords {
  using Row = float;
  static constexpr int kPerWord = 2;
  static constexpr int kRowPerWord = 2;
  struct Words {
    F low, high;
  };
  static Words load_words(const uint32_t* p) {
    Words words;
    widen_words(p, (const T*)nullptr, words.low, words.high);
    return words;
  }
  static F add(F sum, const Row* row, const Words& words) {
    return fma(splat(row[1]), words.high, fma(splat(row[0]), words.low, sum));
  }
};

#if defined(__AVX512BF16__)
// Subnormal weights become zero, as the processor has it.
static inline void narrow_weights(bf16* p, F a) {
  _mm256_storeu_si256((__m256i*)p, (__m256i)_mm512_cvtneps_pbh(a));
}

// 2^x within 1.1e-4 of it; 0 for -infinity. Source: a polynomial of degree 3, fitted to 2^f for f in
// [0, 1) by the least largest relative error.
static inline F power_of_two(F x) {
  F f = _mm512_reduce_ps(x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
  F p = fma(splat(7.8024521e-2f), f, splat(2.2606716e-1f));
  p = fma(p, f, splat(6.9583356e-1f));
  p = fma(p, f, splat(9.9992520e-1f));
  return _mm512_scalef_ps(p, x);
}

// Pairs of bfloat16 multiplied by the processor, summed in float32.
struct PairWords {
  using Row = bf16;
  static constexpr int kPerWord = 2;
  static constexpr int kRowPerWord = 2;
  struct Words {
    __m512bh all;
  };
  static Words load_words(const uint32_t* p) { return {(__m512bh)_mm512_loadu_si512(p)}; }
  static F add(F sum, const Row* row, const Words& words) {
    int pair;
    __builtin_memcpy(&pair, row, 4);
    return _mm512_dpbf16_ps(sum, words.all, (__m512bh)_mm512_set1_epi32(pair));
  }
};
#endif

// A stretch of words that rows are multiplied with: `count` steps, `stride` words apart; and words that
// will be multiplied later, in the same steps. Those are fetched into the second-level cache, since
// the first level waits for too few lines at a time to keep memory busy.
struct Stretch {
  const uint32_t* at[kTileVectors];
  const uint32_t* later[kTileVectors];
  int64_t stride;
  int count;
  bool is_fetching;
};

// out[R, V vectors] = out * factor + rows[R, ...] . stretches. `factors` may be null: then out is
// overwritten. Rows continue from one stretch to the next.
template <class Dot, int R, int V>
static void multiply_words(const typename Dot::Row* rows, int64_t row_stride,
                           const Stretch* stretches, int num_stretches, const float* factors,
                           float* out, int64_t out_stride) {
  F sums[R][V];
  for (int r = 0; r < R; ++r) {
    for (int v = 0; v < V; ++v) {
      sums[r][v] = factors ? load(out + r * out_stride + v * W) * splat(factors[r]) : zero();
    }
  }
  for (int s = 0; s < num_stretches; ++s) {
    const uint32_t* at[V];
    for (int v = 0; v < V; ++v) at[v] = stretches[s].at[v];
    int64_t stride = stretches[s].stride;
    bool is_fetching = stretches[s].is_fetching;
    for (int k = 0; k < stretches[s].count; ++k) {
      if (is_fetching) {
        for (int v = 0; v < V; ++v) {
          __builtin_prefetch(stretches[s].later[v] + k * stride, 0, kSecondLevel);
        }
      }
      typename Dot::Words words[V];
      for (int v = 0; v < V; ++v) {
        words[v] = Dot::load_words(at[v]);
        at[v] += stride;
      }
      for (int r = 0; r < R; ++r) {
        for (int v = 0; v < V; ++v) {
          sums[r][v] = Dot::add(sums[r][v], rows + r * row_stride, words[v]);
        }
      }
      rows += Dot::kRowPerWord;
    }
  }
  for (int r = 0; r < R; ++r) {
    for (int v = 0; v < V; ++v) store(out + r * out_stride + v * W, sums[r][v]);
  }
}

template <class Dot, int V, int R = kTileRows>
static void multiply_rows(int num_rows, const typename Dot::Row* rows, int64_t row_stride,
                          const Stretch* stretches, int num_stretches, const float* factors,
                          float* out, int64_t out_stride) {
  while (num_rows >= R) {
    multiply_words<Dot, R, V>(rows, row_stride, stretches, num_stretches, factors, out,
                              out_stride);
    num_rows -= R;
    rows += R * row_stride;
    out += R * out_stride;
    factors = factors ? factors + R : nullptr;
  }
  if constexpr (R > 1) {
    if (num_rows > 0) {
      multiply_rows<Dot, V, R - 1>(num_rows, rows, row_stride, stretches, num_stretches, factors,
                                   out, out_stride);
    }
  }
}

template <class Dot, int V = kTileVectors>
static void multiply_vectors(int num_vectors, int num_rows, const typename Dot::Row* rows,
                             int64_t row_stride, const Stretch* stretches, int num_stretches,
                             const float* factors, float* out, int64_t out_stride) {
  if (num_vectors == V) {
    multiply_rows<Dot, V>(num_rows, rows, row_stride, stretches, num_stretches, factors, out,
                          out_stride);
  } else if constexpr (V > 1) {
    multiply_vectors<Dot, V - 1>(num_vectors, num_rows, rows, row_stride, stretches,
                                 num_stretches, factors, out, out_stride);
  }
}
