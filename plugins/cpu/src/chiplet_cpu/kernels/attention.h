// Attention over paged keys and values: blocks of query rows against blocks of tokens, with a
// softmax that is corrected as larger scores appear. Included by isa.cpp.
// Source: arXiv:2205.14135, algorithm 1; arXiv:1805.02867 for the running softmax.
//
// A page of one key head holds 32-bit words: one float32, or a pair of 16-bit numbers. Keys lie as
// [head_dim / P][page_size] words, a word pairing neighbours along head_dim; values as
// [page_size / P][head_dim] words, pairing neighbouring tokens. Both products then multiply one
// broadcast word of a row with a vector of words, and nothing is transposed or summed across lanes.
//
// The query heads that share a key head are rows of one block: row = token * group + head.

constexpr int kBlockTokens = 128;  // scores of a block stay in the first-level cache
constexpr int kFewRows = 16;       // below, memory is what takes time
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

// A stretch of words that rows are multiplied with: `count` steps, `stride` words apart.
struct Stretch {
  const uint32_t* at[kTileVectors];
  int64_t stride;
  int count;
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
    for (int k = 0; k < stretches[s].count; ++k) {
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

// The running softmax of a block of rows.
struct Running {
  float* peak;     // largest score so far
  float* total;    // sum of weights
  float* factors;  // what the next block multiplies earlier sums with
  float* sums;     // [rows, head_dim] weighted values
};

struct RowRange {
  int64_t begin, end;  // tokens of a block that a row sees
};

// Scores of one row become weights, in place; tokens that the row does not see weigh nothing.
// The scale is positive. It is applied within the exponent, where it costs no rounding.
static inline void soften(float* scores, int num_tokens, RowRange seen, float scale, int row,
                          Running& running) {
  const F factor = splat(scale);
  F most = splat(-__builtin_inff());
  for (int begin = 0; begin < num_tokens; begin += W) {
    bool is_whole = begin >= seen.begin && begin + W <= seen.end;
    for (int i = begin; !is_whole && i < begin + W; ++i) {
      if (i < seen.begin || i >= seen.end) scores[i] = -__builtin_inff();
    }
    most = max(load(scores + begin), most);
  }
  float before = running.peak[row], peak = largest(most) * scale;
  peak = peak > before ? peak : before;
  F sum = zero(), minus_peak = splat(-peak);
  for (int begin = 0; begin < num_tokens; begin += W) {
    F weight = exp(fma(load(scores + begin), factor, minus_peak));
    store(scores + begin, weight);
    sum = sum + weight;
  }
  float correction = first_lane(exp(splat(before - peak)));
  running.factors[row] = correction;
  running.total[row] = running.total[row] * correction + ::CHIPLET_ISA::sum(sum);
  running.peak[row] = peak;
}

template <class Row>
static const Row* weights_as(float* scores, int64_t stride, int num_rows, int num_tokens,
                             Row* narrow) {
  if constexpr (sizeof(Row) == 4) {
    return scores;
  } else {
    for (int r = 0; r < num_rows; ++r) {
      for (int i = 0; i < num_tokens; i += W) {
        narrow_weights(narrow + r * stride + i, load(scores + r * stride + i));
      }
    }
    return narrow;
  }
}

template <class Dot>
struct Attending {
  using Row = typename Dot::Row;
  static constexpr int P = Dot::kPerWord;
  const AttentionArgs& a;
  const AttentionItem& item;
  int64_t head_words;  // of the keys, or the values, of one head in one page
  const uint32_t* kv;
  const int32_t* pages;
  Row* q;                  // [rows, head_dim]
  float* scores;           // [rows, kBlockTokens]
  Row* narrow;             // the same in the row type, unless that is float
  uint32_t* last_word;     // [head_dim]: the last values of an odd number
  Running running;

  const uint32_t* words(int64_t token, int of_values) const {
    int64_t page = pages[token / a.page_size];
    return kv + ((page * 2 + of_values) * a.num_kv_heads + item.head) * head_words;
  }

  // Pages lie scattered, where the processor's own prefetching ends with each head of a page.
  void prefetch(int64_t begin, int64_t end, int of_values) const {
    for (int64_t token = begin; token < end;) {
      int64_t offset = token % a.page_size, left = a.page_size - offset;
      int64_t taken = end - token < left ? end - token : left;
      const char* at = (const char*)words(token, of_values) + offset * a.head_dim * 4 / P;
      for (int64_t i = 0; i < taken * a.head_dim * 4 / P; i += 64) __builtin_prefetch(at + i);
      token += taken;
    }
  }

  void score(int64_t begin, int num_vectors) {
    for (int first = 0; first < num_vectors; first += kTileVectors) {
      int count = num_vectors - first < kTileVectors ? num_vectors - first : kTileVectors;
      Stretch stretch;
      stretch.stride = a.page_size;
      stretch.count = (int)(a.head_dim / P);
      for (int v = 0; v < count; ++v) {
        int64_t token = begin + (first + v) * W;
        stretch.at[v] = words(token, 0) + token % a.page_size;
      }
      multiply_vectors<Dot>(count, item.num_rows, q, a.head_dim, &stretch, 1, nullptr,
                            scores + first * W, kBlockTokens);
    }
  }

  void add_values(int64_t begin, int64_t end, const Row* weights) {
    Stretch stretches[kBlockTokens / 16 + 2];
    int64_t num_dims = a.head_dim / W;
    for (int64_t first = 0; first < num_dims; first += kTileVectors) {
      int count = (int)(num_dims - first < kTileVectors ? num_dims - first : kTileVectors);
      int num = 0;
      for (int64_t token = begin; token < end;) {
        int64_t offset = token % a.page_size, left = a.page_size - offset;
        int64_t taken = end - token < left ? end - token : left;
        const uint32_t* at = words(token, 1) + offset / P * a.head_dim + first * W;
        if (taken / P > 0) {
          stretches[num++] = stretch_at(at, (int)(taken / P), count);
        }
        if (taken % P) {  // what lies beside the last token may be anything
          const uint32_t* odd = at + taken / P * a.head_dim;
          uint32_t* kept = last_word + first * W;
          for (int i = 0; i < count * W; ++i) kept[i] = odd[i] & 0xffff;
          stretches[num++] = stretch_at(kept, 1, count);
        }
        token += taken;
      }
      multiply_vectors<Dot>(count, item.num_rows, weights, kBlockTokens, stretches, num,
                            running.factors, running.sums + first * W, a.head_dim);
    }
  }

  Stretch stretch_at(const uint32_t* at, int steps, int num_vectors) const {
    Stretch stretch;
    stretch.stride = a.head_dim;
    stretch.count = steps;
    for (int v = 0; v < num_vectors; ++v) stretch.at[v] = at + v * W;
    return stretch;
  }

  void run(int64_t first_position) {
    for (int r = 0; r < item.num_rows; ++r) {
      running.peak[r] = -3e38f;
      running.total[r] = 0;
    }
    for (int64_t i = 0; i < item.num_rows * a.head_dim; ++i) running.sums[i] = 0;
    for (int64_t begin = item.kv_begin; begin < item.kv_end; begin += kBlockTokens) {
      int64_t end = begin + kBlockTokens < item.kv_end ? begin + kBlockTokens : item.kv_end;
      int num_tokens = (int)((end - begin + W - 1) / W * W);
      if (item.num_rows <= kFewRows) {
        if (begin == item.kv_begin) prefetch(begin, end, 0);
        prefetch(begin, end, 1);
      }
      score(begin, num_tokens / W);
      for (int r = 0; r < item.num_rows; ++r) {
        int64_t position = first_position + (item.first_row + r) / a.group;
        RowRange seen{0, position + 1 - begin};
        if (a.window > 0) seen.begin = position + 1 - a.window - begin;
        if (seen.end > end - begin) seen.end = end - begin;
        soften(scores + r * kBlockTokens, num_tokens, seen, a.scale, r, running);
      }
      if (item.num_rows <= kFewRows && end < item.kv_end) {
        prefetch(end, end + kBlockTokens < item.kv_end ? end + kBlockTokens : item.kv_end, 0);
      }
      add_values(begin, end,
                 weights_as<Row>(scores, kBlockTokens, item.num_rows, num_tokens, narrow));
    }
  }
};

template <class T>
static void finish_rows(const AttentionArgs& a, const AttentionItem& item, int64_t first_token,
                        const Running& running) {
  for (int r = 0; r < item.num_rows; ++r) {
    int64_t row = item.first_row + r;
    int64_t head = item.head * a.group + row % a.group;
    T* out = (T*)a.out + ((first_token + row / a.group) * a.num_kv_heads * a.group + head) *
                             a.head_dim;
    F inverse = splat(1.0f / running.total[r]);
    const float* sums = running.sums + r * a.head_dim;
    for (int64_t i = 0; i < a.head_dim; i += W) store(out + i, load(sums + i) * inverse);
  }
}

template <class T, class Row>
static void take_queries(const AttentionArgs& a, const AttentionItem& item, int64_t first_token,
                         Row* q) {
  for (int r = 0; r < item.num_rows; ++r) {
    int64_t row = item.first_row + r;
    int64_t head = item.head * a.group + row % a.group;
    const T* from = (const T*)a.q + (first_token + row / a.group) * a.q_row_stride +
                    head * a.q_head_stride;
    for (int64_t i = 0; i < a.head_dim; i += W) store(q + r * a.head_dim + i, load(from + i));
  }
}

template <class Dot>
static void attend_item(const AttentionArgs& a, const AttentionItem& item) {
  using Row = typename Dot::Row;
  int64_t rows = item.num_rows, d = a.head_dim;
  // Each part is a multiple of 64 bytes.
  int64_t floats = rows * (d + kBlockTokens) + 3 * kAttentionRows;
  int64_t words = d + (rows * d + rows * kBlockTokens);
  char* memory = (char*)pool::own_memory((floats + words) * 4);
  Attending<Dot> work{a, item, d * a.page_size / Dot::kPerWord, (const uint32_t*)a.kv};
  work.pages = a.page_table + item.request * a.table_stride;
  work.running.sums = (float*)memory;
  work.scores = work.running.sums + rows * d;
  work.running.peak = work.scores + rows * kBlockTokens;
  work.running.total = work.running.peak + kAttentionRows;
  work.running.factors = work.running.total + kAttentionRows;
  work.last_word = (uint32_t*)(work.running.factors + kAttentionRows);
  work.q = (Row*)(work.last_word + d);
  work.narrow = work.q + rows * d;
  int64_t first_token = a.query_starts[item.request];
  int64_t num_queries = a.query_starts[item.request + 1] - first_token;
  CHIPLET_DISPATCH(a.dtype, T, take_queries<T>(a, item, first_token, work.q))
  work.run(a.kv_lengths[item.request] - num_queries);
  if (item.part < 0) {
    CHIPLET_DISPATCH(a.dtype, T, finish_rows<T>(a, item, first_token, work.running))
    return;
  }
  float* part = a.parts + item.part * kAttentionRows * (d + 2);
  for (int64_t r = 0; r < rows; ++r, part += d + 2) {
    part[0] = work.running.peak[r];
    part[1] = work.running.total[r];
    __builtin_memcpy(part + 2, work.running.sums + r * d, d * 4);
  }
}

static void attend(const AttentionArgs& a, const AttentionItem* items, int64_t begin,
                   int64_t end) {
  for (int64_t i = begin; i < end; ++i) {
    switch (a.kv_dtype) {
      case Dtype::float32: attend_item<FloatWords>(a, items[i]); break;
      case Dtype::float16: attend_item<WideWords<f16>>(a, items[i]); break;
      case Dtype::bfloat16:
#if defined(__AVX512BF16__)
        if (a.dtype == Dtype::bfloat16) {
          attend_item<PairWords>(a, items[i]);
          break;
        }
#endif
        attend_item<WideWords<bf16>>(a, items[i]);
    }
  }
}

// Joins the parts of items [begin, end), each of which names its first part and their number.
static void join_parts(const AttentionArgs& a, const AttentionItem* joined, int64_t begin,
                       int64_t end) {
  int64_t d = a.head_dim;
  for (int64_t i = begin; i < end; ++i) {
    const AttentionItem& item = joined[i];
    float* first = a.parts + item.part * kAttentionRows * (d + 2);
    int64_t first_token = a.query_starts[item.request];
    for (int r = 0; r < item.num_rows; ++r, first += d + 2) {
      for (int64_t p = 1; p < item.kv_end; ++p) {
        float* next = first + p * kAttentionRows * (d + 2);
        float peak = first[0] > next[0] ? first[0] : next[0];
        F mine = exp(splat(first[0] - peak)), theirs = exp(splat(next[0] - peak));
        first[0] = peak;
        first[1] = first[1] * first_lane(mine) + next[1] * first_lane(theirs);
        for (int64_t k = 0; k < d; k += W) {
          store(first + 2 + k, fma(load(next + 2 + k), theirs, load(first + 2 + k) * mine));
        }
      }
      float sums_row = first[1];
      AttentionItem one = item;
      one.first_row += r;
      one.num_rows = 1;
      Running running{nullptr, &sums_row, nullptr, first + 2};
      CHIPLET_DISPATCH(a.dtype, T, finish_rows<T>(a, one, first_token, running))
    }
  }
}

// Keys and values of tokens [begin, end) into their pages.
template <class T, class K>
static void write_kv_rows(const KvWriteArgs& a, int64_t begin, int64_t end) {
  constexpr int P = 4 / sizeof(K);
  int64_t d = a.head_dim, head_size = a.page_size * d;
  K* narrow = (K*)pool::own_memory(d * 4);
  for (int64_t token = begin; token < end; ++token) {
    int64_t page = a.kv_rows[token] / a.page_size, at = a.kv_rows[token] % a.page_size;
    K* keys = (K*)a.kv + page * 2 * a.num_kv_heads * head_size;
    for (int64_t head = 0; head < a.num_kv_heads; ++head, keys += head_size) {
      const T* k = (const T*)a.k + token * a.k_row_stride + head * a.k_head_stride;
      const T* v = (const T*)a.v + token * a.v_row_stride + head * a.v_head_stride;
      for (int64_t i = 0; i < d; i += W) store(narrow + i, load(k + i));
      for (int64_t i = 0; i < d; i += P) {
        for (int p = 0; p < P; ++p) keys[(i / P * a.page_size + at) * P + p] = narrow[i + p];
      }
      for (int64_t i = 0; i < d; i += W) store(narrow + i, load(v + i));
      K* values = keys + a.num_kv_heads * head_size + at / P * d * P + at % P;
      for (int64_t i = 0; i < d; ++i) values[i * P] = narrow[i];
    }
  }
}

static void write_kv(const KvWriteArgs& a, int64_t begin, int64_t end) {
  CHIPLET_DISPATCH(a.dtype, T, CHIPLET_DISPATCH(a.kv_dtype, K, {
                     write_kv_rows<T, K>(a, begin, end);
                   }))
}
