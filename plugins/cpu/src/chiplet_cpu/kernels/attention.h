// Attention over paged keys and values: blocks of query rows against blocks of tokens, with a
// softmax that is corrected as larger scores appear. Included by isa.cpp.
// Source: arXiv:2205.14135, algorithm 1; arXiv:1805.02867 for the running softmax.
//
// A page of one key head holds words of P numbers: keys as [head_dim / P][page_size] words, a word
// pairing neighbours along head_dim; values as [page_size / P][head_dim] words, pairing neighbouring
// tokens. Numbers of eight bits lie in the order of 16-bit ones; see kv_pages.h.
//
// The query heads that share a key head are rows of one block: row = token * group + head. So
// are those of several requests, against tokens that they have in common; see AttentionItem.

constexpr int kFewRows = 16;       // below, memory is what takes time


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

// Below any score, and finite also when multiplied by log2 e.
constexpr float kNoScore = -1e38f;

// The largest score of one row; those of tokens that the row does not see become -infinity.
static inline float largest_score(float* scores, int num_tokens, RowRange seen) {
  F most = splat(-__builtin_inff());
  for (int begin = 0; begin < num_tokens; begin += W) {
    bool is_whole = begin >= seen.begin && begin + W <= seen.end;
    for (int i = begin; !is_whole && i < begin + W; ++i) {
      if (i < seen.begin || i >= seen.end) scores[i] = -__builtin_inff();
    }
    most = max(load(scores + begin), most);
  }
  return largest(most);
}

// Peaks of all rows become those that this block raises them to; what went before is scaled.
static inline void raise_peaks(int num_rows, Running& running) {
  for (int r = 0; r < num_rows; r += W) {
    F before = load(running.peak + r), peak = max(load(running.factors + r), before);
    F factor = exp(before - peak);
    store(running.peak + r, peak);
    store(running.factors + r, factor);
    store(running.total + r, load(running.total + r) * factor);
  }
}

// Scores become softcap * tanh(scale * score / softcap), in place.
static inline void cap_scores(float* scores, int num_tokens, float scale, float softcap) {
  const F inner = splat(scale / softcap), outer = splat(softcap);
  for (int i = 0; i < num_tokens; i += W) {
    store(scores + i, outer * tanh(load(scores + i) * inner));
  }
}

static inline void multiply_each(float* x, const float* factors, int count) {
  for (int i = 0; i < count; i += W) store(x + i, load(x + i) * load(factors + i));
}

// Weights of one row, e^(scale * score - peak), in the type of rows; the sum of them. They are then
// multiplied with `factors`, if there are any. The scale is positive. It is applied within the
// exponent, where it costs no rounding.
static inline float soften(const float* scores, int num_tokens, float scale, float peak,
                           const float* factors, float* out) {
  F sum = zero(), factor = splat(scale), minus_peak = splat(-peak);
  for (int i = 0; i < num_tokens; i += W) {
    F weight = exp(fma(load(scores + i), factor, minus_peak));
    sum = sum + weight;
    store(out + i, factors ? weight * load(factors + i) : weight);
  }
  return ::CHIPLET_ISA::sum(sum);
}

#if defined(__AVX512BF16__)
// Rounding to bfloat16 is a hundred times what the power is wrong by.
static inline float soften(const float* scores, int num_tokens, float scale, float peak,
                           const float* factors, bf16* out) {
  constexpr float kLog2E = 1.44269504088896341f;
  F sum = zero(), factor = splat(scale * kLog2E), minus_peak = splat(-peak * kLog2E);
  for (int i = 0; i < num_tokens; i += W) {
    F weight = power_of_two(fma(load(scores + i), factor, minus_peak));
    sum = sum + weight;
    narrow_weights(out + i, factors ? weight * load(factors + i) : weight);
  }
  return ::CHIPLET_ISA::sum(sum);
}
#endif

static inline const int32_t* pages_of(const AttentionArgs& a, const AttentionItem& item) {
  return a.page_table + (item.members ? item.members[0] : item.request) * a.table_stride;
}

// The token in the batch of an item's row.
static inline int64_t token_of(const AttentionArgs& a, const AttentionItem& item, int64_t row) {
  int64_t index = row / a.group;
  return item.members ? a.query_starts[item.members[index]]
                      : a.query_starts[item.request] + index;
}

// Keys, or values, of an item's head in the page of a token; `width` bytes a token.
static inline const char* in_page(const AttentionArgs& a, const AttentionItem& item,
                                  const int32_t* pages, int64_t token, int of_values,
                                  int64_t width) {
  int64_t page = pages[token / a.page_size];
  return (const char*)a.kv +
         ((page * 2 + of_values) * a.num_kv_heads + item.head) * a.page_size * width;
}

template <class Dot>
struct Attending {
  using Row = typename Dot::Row;
  static constexpr int P = Dot::kPerWord;
  const AttentionArgs& a;
  const AttentionItem& item;
  const AttentionItem* end;   // of what this thread does from this item on
  const int32_t* pages;
  bool is_fetching, is_fetching_codes;  // few rows: memory is what takes time
  int64_t page_tokens;  // of what is multiplied: a page, or tokens that were decoded
  Row* q;                  // [rows, head_dim]
  float* scores;           // [rows, kBlockTokens]
  Row* narrow;             // the same in the row type, unless that is float
  uint32_t* last_word;     // [head_dim]: the last values of an odd number
  DecodedTokens decoded;
  Running running;

  // Keys or values of the head in the page of a token; the place of the token there.
  const uint32_t* words(int64_t token, int of_values) const {
    if (a.coding != KvCoding::none) {
      return (const uint32_t*)(of_values ? decoded.values : decoded.keys);
    }
    return (const uint32_t*)in_page(a, item, pages, token, of_values, a.head_dim * 4 / P);
  }
  int64_t place(int64_t token) const {
    return (a.coding != KvCoding::none ? token - item.kv_begin : token) % page_tokens;
  }

  // As many bytes of a later page as some tokens take: all of it, once all its tokens were decoded.
  void fetch_codes(int64_t token, int64_t count, int64_t width) const {
    for (int of_values = 0; of_values < 2; ++of_values) {
      int64_t later = token;
      const char* page = later_page(later, of_values, width);
      if (!page) return;
      page += later % a.page_size * width;
      for (int64_t i = 0; i < count * width; i += 64) __builtin_prefetch(page + i, 0, kSecondLevel);
    }
  }

  void decode(int64_t begin, int64_t end) {
    for (int i = (int)(end - begin); i < kBlockTokens; ++i) {
      decoded.key_scales[i] = decoded.value_scales[i] = 0;
    }
    int64_t width = row_width(a.coding, a.head_dim);
    for (int64_t token = begin; token < end;) {
      int64_t offset = token % a.page_size, left = a.page_size - offset;
      int64_t taken = end - token < left ? end - token : left;
      auto* keys = (const uint8_t*)in_page(a, item, pages, token, 0, width);
      auto* values = (const uint8_t*)in_page(a, item, pages, token, 1, width);
      auto decode_as = a.coding == KvCoding::int8 ? decode_page<KvCoding::int8>
                                                  : decode_page<KvCoding::fp8>;
      decode_as(keys, values, offset, taken, a.page_size, a.head_dim, token - begin, decoded);
      if (is_fetching_codes) fetch_codes(token, taken, width);
      token += taken;
    }
  }

  // The page's keys, or values, of a token one block later, which may be of an item that follows; null if
  // there is none. `token` becomes that token.
  const char* later_page(int64_t& token, int of_values, int64_t width) const {
    const AttentionItem* owner = &item;
    token += kBlockTokens;
    while (token >= owner->kv_end) {
      token -= (owner->kv_end + 15) / 16 * 16;
      if (++owner == end) return nullptr;
      token += owner->kv_begin;
    }
    return in_page(a, *owner, pages_of(a, *owner), token, of_values, width);
  }

  const uint32_t* later_words(int64_t token, int of_values) const {
    auto* page = (const uint32_t*)later_page(token, of_values, a.head_dim * 4 / P);
    int64_t offset = token % a.page_size;
    return page ? page + (of_values ? offset / P * a.head_dim : offset) : nullptr;
  }

  void add_vector(Stretch& stretch, int v, const uint32_t* words, const uint32_t* later) const {
    stretch.at[v] = words;
    stretch.later[v] = later ? later : words;  // which is there already
  }

  void score(int64_t begin, int num_vectors) {
    for (int first = 0; first < num_vectors; first += kTileVectors) {
      int count = num_vectors - first < kTileVectors ? num_vectors - first : kTileVectors;
      Stretch stretch;
      stretch.stride = page_tokens;
      stretch.count = (int)(a.head_dim / P);
      stretch.is_fetching = is_fetching;
      for (int v = 0; v < count; ++v) {
        int64_t token = begin + (first + v) * W;
        add_vector(stretch, v, words(token, 0) + place(token),
                   is_fetching ? later_words(token, 0) : nullptr);
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
        int64_t offset = place(token), left = page_tokens - offset;
        if (is_fetching && left > 16) left = 16;  // which lie together one block later too
        int64_t taken = end - token < left ? end - token : left;
        const uint32_t* at = words(token, 1) + offset / P * a.head_dim + first * W;
        if (taken / P > 0) {
          const uint32_t* later = is_fetching ? later_words(token, 1) : nullptr;
          stretches[num++] =
              stretch_at(at, later ? later + first * W : nullptr, (int)(taken / P), count);
        }
        if (taken % P) {  // what lies beside the last token may be anything
          const uint32_t* odd = at + taken / P * a.head_dim;
          uint32_t* kept = last_word + first * W;
          for (int i = 0; i < count * W; ++i) kept[i] = odd[i] & 0xffff;
          stretches[num++] = stretch_at(kept, nullptr, 1, count);
        }
        token += taken;
      }
      multiply_vectors<Dot>(count, item.num_rows, weights, kBlockTokens, stretches, num,
                            running.factors, running.sums + first * W, a.head_dim);
    }
  }

  Stretch stretch_at(const uint32_t* at, const uint32_t* later, int steps, int num_vectors) const {
    Stretch stretch;
    stretch.stride = a.head_dim;
    stretch.count = steps;
    stretch.is_fetching = is_fetching;
    for (int v = 0; v < num_vectors; ++v) {
      add_vector(stretch, v, at + v * W, later ? later + v * W : nullptr);
    }
    return stretch;
  }

  void begin_rows() {
    for (int r = 0; r < item.num_rows; ++r) {
      bool has_sink = a.sinks && item.is_first;
      int64_t head = item.head * a.group + (item.first_row + r) % a.group;
      running.peak[r] = has_sink ? a.sinks[head] : kNoScore;
      running.total[r] = has_sink ? 1 : 0;
    }
    // Vectors of rows are worked on, the last one whole.
    for (int r = (int)item.num_rows; r % W; ++r) {
      running.peak[r] = running.factors[r] = kNoScore;
      running.total[r] = 0;
    }
    for (int64_t i = 0; i < item.num_rows * a.head_dim; ++i) running.sums[i] = 0;
  }

  // Scores of new tokens that a row of a tree does not see become nothing; the tokens that may be left.
  RowRange mask_tree(float* row, uint64_t tree, int64_t begin, int64_t end, int64_t cached) const {
    RowRange seen{0, end - begin};
    if (a.window > 0) {
      int64_t depth = __builtin_popcountll(tree);
      seen.begin = cached + (depth < a.window ? depth - a.window : 0) - begin;
      for (; depth > a.window; --depth) tree &= tree - 1;  // ancestors come in order
    }
    for (int64_t token = begin > cached ? begin : cached; token < end; ++token) {
      if (!(tree >> (token - cached) & 1)) row[token - begin] = -__builtin_inff();
    }
    return seen;
  }

  // Scores of all rows become weights, which are returned.
  const Row* soften_rows(int64_t begin, int64_t end, int num_tokens, int64_t first_position) {
    bool is_scaled = a.coding == KvCoding::int8;
    for (int r = 0; r < item.num_rows; ++r) {
      // Members of a group see all tokens that they have in common.
      int64_t index = (item.first_row + r) / a.group;
      int64_t position = item.members ? item.kv_end - 1 : first_position + index;
      uint64_t tree = item.members ? 0 : tree_of(a, a.query_starts[item.request] + index);
      RowRange seen{0, position + 1 - begin};
      if (a.window > 0) seen.begin = position + 1 - a.window - begin;
      if (seen.end > end - begin) seen.end = end - begin;
      float* row = scores + r * kBlockTokens;
      if (is_scaled) multiply_each(row, decoded.key_scales, num_tokens);
      if (a.softcap > 0) cap_scores(row, num_tokens, a.scale, a.softcap);
      if (tree) seen = mask_tree(row, tree, begin, end, first_position);
      running.factors[r] = largest_score(row, num_tokens, seen) * scale();
    }
    raise_peaks((int)item.num_rows, running);
    Row* weights = sizeof(Row) == 4 ? (Row*)scores : narrow;
    for (int r = 0; r < item.num_rows; ++r) {
      running.total[r] += soften(scores + r * kBlockTokens, num_tokens, scale(), running.peak[r],
                                 is_scaled ? decoded.value_scales : nullptr,
                                 weights + r * kBlockTokens);
    }
    return weights;
  }

  // Capped scores are scaled already.
  float scale() const { return a.softcap > 0 ? 1 : a.scale; }

  void run(int64_t first_position) {
    begin_rows();
    for (int64_t begin = item.kv_begin; begin < item.kv_end; begin += kBlockTokens) {
      int64_t end = begin + kBlockTokens < item.kv_end ? begin + kBlockTokens : item.kv_end;
      int num_tokens = (int)((end - begin + W - 1) / W * W);
      if (a.coding != KvCoding::none) decode(begin, end);
      score(begin, num_tokens / W);
      add_values(begin, end, soften_rows(begin, end, num_tokens, first_position));
    }
  }
};

template <class T>
static void finish_rows(const AttentionArgs& a, const AttentionItem& item, const float* totals,
                        const float* sums) {
  for (int r = 0; r < item.num_rows; ++r, sums += a.head_dim) {
    int64_t row = item.first_row + r;
    int64_t head = item.head * a.group + row % a.group;
    T* out = (T*)a.out +
             (token_of(a, item, row) * a.num_kv_heads * a.group + head) * a.head_dim;
    F inverse = splat(1.0f / totals[r]);
    for (int64_t i = 0; i < a.head_dim; i += W) store(out + i, load(sums + i) * inverse);
  }
}

template <class T, class Row>
static void take_queries(const AttentionArgs& a, const AttentionItem& item, Row* q) {
  for (int r = 0; r < item.num_rows; ++r) {
    int64_t row = item.first_row + r;
    int64_t head = item.head * a.group + row % a.group;
    const T* from = (const T*)a.q + token_of(a, item, row) * a.q_row_stride +
                    head * a.q_head_stride;
    for (int64_t i = 0; i < a.head_dim; i += W) store(q + r * a.head_dim + i, load(from + i));
  }
}

template <class Dot>
static void attend_item(const AttentionArgs& a, const AttentionItem& item,
                        const AttentionItem* end) {
  using Row = typename Dot::Row;
  int64_t rows = item.num_rows, d = a.head_dim;
  // Each part is a multiple of 64 bytes.
  int64_t floats = rows * (d + kBlockTokens) + 3 * kAttentionRows;
  int64_t words = d + (rows * d + rows * kBlockTokens);
  int64_t decoded = a.coding != KvCoding::none ? (d + 2) * kBlockTokens : 0;
  float* memory = (float*)pool::own_memory((floats + words + decoded) * 4);
  auto take = [&memory](int64_t count) {
    float* taken = memory;
    memory += count;
    return taken;
  };
  Attending<Dot> work{a, item, end, pages_of(a, item)};
  work.is_fetching = rows <= kFewRows && !decoded;
  work.is_fetching_codes = rows <= kFewRows && decoded;
  work.page_tokens = decoded ? kBlockTokens : a.page_size;
  work.running.sums = take(rows * d);
  work.scores = take(rows * kBlockTokens);
  work.running.peak = take(kAttentionRows);
  work.running.total = take(kAttentionRows);
  work.running.factors = take(kAttentionRows);
  work.last_word = (uint32_t*)take(d);
  work.q = (Row*)take(rows * d);
  work.narrow = (Row*)take(rows * kBlockTokens);
  if (decoded) {
    int64_t pairs = d * kBlockTokens / 2;
    work.decoded = {(bf16*)take(pairs), (bf16*)take(pairs), take(kBlockTokens),
                    take(kBlockTokens)};
  }
  int64_t num_queries = a.query_starts[item.request + 1] - a.query_starts[item.request];
  CHIPLET_DISPATCH(a.dtype, T, take_queries<T>(a, item, work.q))
  work.run(a.kv_lengths[item.request] - num_queries);
  if (item.part < 0) {
    CHIPLET_DISPATCH(a.dtype, T, finish_rows<T>(a, item, work.running.total, work.running.sums))
    return;
  }
  float* part = a.parts + item.part * (d + 2);
  for (int64_t r = 0; r < rows; ++r, part += d + 2) {
    part[0] = work.running.peak[r];
    part[1] = work.running.total[r];
    __builtin_memcpy(part + 2, work.running.sums + r * d, d * 4);
  }
}

static void attend(const AttentionArgs& a, const AttentionItem* items, int64_t begin,
                   int64_t end) {
  for (int64_t i = begin; i < end; ++i) {
    // Codes are decoded to bfloat16.
    Dtype kv_dtype = a.coding != KvCoding::none ? Dtype::bfloat16 : a.kv_dtype;
    switch (kv_dtype) {
      case Dtype::float32: attend_item<FloatWords>(a, items[i], items + end); break;
      case Dtype::float16: attend_item<WideWords<f16>>(a, items[i], items + end); break;
      case Dtype::bfloat16:
#if defined(__AVX512BF16__)
        if (a.dtype == Dtype::bfloat16) {
          attend_item<PairWords>(a, items[i], items + end);
          break;
        }
#endif
        attend_item<WideWords<bf16>>(a, items[i], items + end);
    }
  }
}

// Adds what another part found of the same row: peak, total, weighted values.
static inline void merge_part(float* mine, const float* theirs, int64_t d) {
  float peak = mine[0] > theirs[0] ? mine[0] : theirs[0];
  F factor = exp(splat(mine[0] - peak)), other = exp(splat(theirs[0] - peak));
  mine[0] = peak;
  mine[1] = mine[1] * first_lane(factor) + theirs[1] * first_lane(other);
  for (int64_t i = 2; i < d + 2; i += W) {
    store(mine + i, fma(load(theirs + i), other, load(mine + i) * factor));
  }
}

static void join_parts(const AttentionArgs& a, const AttentionJoin* joins, int64_t begin,
                       int64_t end) {
  int64_t width = a.head_dim + 2;
  for (const AttentionJoin* join = joins + begin; join < joins + end; ++join) {
    AttentionItem row = join->rows;
    row.num_rows = 1;
    for (int64_t r = 0; r < join->rows.num_rows; ++r, ++row.first_row) {
      float* mine = a.parts + (join->own.first + r) * width;
      const AttentionParts sources[] = {join->own, join->shared};
      for (const AttentionParts& each : sources) {
        for (int64_t p = 0; p < each.count; ++p) {
          const float* part = a.parts + (each.first + r + p * each.stride) * width;
          if (part != mine) merge_part(mine, part, a.head_dim);
        }
      }
      CHIPLET_DISPATCH(a.dtype, T, finish_rows<T>(a, row, mine + 1, mine + 2))
    }
  }
}
