// Sampling without sorting the vocabulary. Included by isa.cpp.
//
// Top-k, top-p and min-p keep a prefix of the tokens by falling logit, ties by rising id. The
// prefix is described by its last logit and how many of that logit's ties it takes, both found by
// a radix search over the logits' bits: counts decide for top-k, probabilities for top-p.

// Order of floats as unsigned integers: larger for a larger float.
static inline uint32_t key_of(float x) {
  uint32_t bits;
  __builtin_memcpy(&bits, &x, 4);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

struct Prefix {
  uint32_t last_key;
  int64_t num_ties;  // of last_key that are kept
};

// The shortest prefix whose weight is at least `wanted`; everything if there is none.
// weight(i) >= 0 is what token i adds; only tokens with key >= floor count.
template <class Weight>
static Prefix find_prefix(const float* logits, int64_t n, Prefix within, double wanted,
                          int32_t* ids, Weight weight) {
  constexpr int kBins = 2048;
  static thread_local double bins[kBins];
  double before = 0;
  uint32_t prefix = 0;
  int64_t left = n;
  for (int64_t i = 0; i < n; ++i) ids[i] = i;
  const int shifts[] = {21, 10, 0};
  for (int level = 0; level < 3; ++level) {
    int shift = shifts[level], width = level == 2 ? 1024 : kBins;
    for (int b = 0; b < width; ++b) bins[b] = 0;
    int64_t ties = 0;
    for (int64_t j = 0; j < left; ++j) {
      uint32_t key = key_of(logits[ids[j]]);
      if (key < within.last_key || (key == within.last_key && ++ties > within.num_ties)) continue;
      bins[(key >> shift) & (width - 1)] += weight(ids[j]);
    }
    int bin = width - 1;
    while (bin > 0 && (bins[bin] == 0 || before + bins[bin] < wanted)) before += bins[bin--];
    prefix |= (uint32_t)bin << shift;
    int64_t kept = 0;
    for (int64_t j = 0; j < left; ++j) {
      if ((key_of(logits[ids[j]]) >> shift) == (prefix >> shift)) ids[kept++] = ids[j];
    }
    left = kept;
  }
  if (prefix < within.last_key) return within;
  // All that is left ties at one logit, so that every one of them weighs the same.
  int64_t limit = prefix == within.last_key && within.num_ties < left ? within.num_ties : left;
  int64_t taken = 0;
  while (taken < limit && before < wanted) before += weight(ids[taken++]);
  return {prefix, taken > 0 ? taken : 1};
}

// The first of the largest; 0 for a row of NaN.
template <class T>
static int64_t find_largest(const T* x, int64_t n) {
  constexpr int64_t kBlock = 16 * W;
  float best = -__builtin_inff();
  int64_t best_block = 0;
  for (int64_t block = 0; block < n; block += kBlock) {
    F most = splat(-__builtin_inff());
    each_vector(n - block < kBlock ? n - block : kBlock, [&](int64_t i, auto load, auto) {
      // What lies beyond the end is read as 0.
      F values = load(x + block + i);
      if (block + i + W > n) {
        alignas(64) float kept[W];
        store(kept, values);
        for (int64_t k = n - block - i; k < W; ++k) kept[k] = -__builtin_inff();
        values = ::CHIPLET_ISA::load(kept);
      }
      most = max(values, most);
    });
    float value = largest(most);
    if (value > best) {
      best = value;
      best_block = block;
    }
  }
  for (int64_t i = best_block; i < n; ++i) {
    if (one_as_float(x + i) == best) return i;
  }
  return 0;
}

template <class T>
static void argmax_rows(const ArgmaxArgs& a, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    a.out[row] = (int32_t)find_largest((const T*)a.x + row * a.stride, a.width);
  }
}

static void argmax(Dtype dtype, const ArgmaxArgs& a, int64_t begin, int64_t end) {
  CHIPLET_DISPATCH(dtype, T, argmax_rows<T>(a, begin, end))
}

// The first kept token at which the running sum exceeds uniform times the total.
static int32_t pick_from(const float* scaled, const float* probs, int64_t n, Prefix prefix,
                         float uniform) {
  auto is_kept = [&](int64_t i, int64_t& ties) {
    uint32_t key = key_of(scaled[i]);
    return key > prefix.last_key || (key == prefix.last_key && ties++ < prefix.num_ties);
  };
  double total = 0, running = 0;
  int64_t ties = 0, last = 0;
  for (int64_t i = 0; i < n; ++i) total += is_kept(i, ties) ? probs[i] : 0;
  ties = 0;
  for (int64_t i = 0; i < n; ++i) {
    if (!is_kept(i, ties) || !(probs[i] > 0)) continue;
    running += probs[i];
    last = i;
    if (running > (double)uniform * total) return i;
  }
  return last;  // a row of NaN, or the last rounding of the sum
}

// Moves the tokens of a prefix together, in vocabulary order, so that ties stay in theirs; how many.
static int64_t gather_prefix(float* scaled, float* probs, int32_t* tokens, int64_t n,
                             Prefix prefix, bool is_first) {
  int64_t count = 0, ties = 0;
  for (int64_t i = 0; i < n; ++i) {
    uint32_t key = key_of(scaled[i]);
    if (key < prefix.last_key) continue;
    if (key == prefix.last_key && ties++ >= prefix.num_ties) continue;
    scaled[count] = scaled[i];
    probs[count] = probs[i];
    tokens[count++] = is_first ? (int32_t)i : tokens[i];
  }
  return count;
}

// Leaves the top_k likeliest tokens, as gather_prefix does. The k-th of the largest logits of each
// block is a lower bound: at least k tokens reach it, and mostly few more do.
static int64_t keep_likeliest(float* scaled, float* probs, int32_t* tokens, int32_t* ids,
                              int64_t n, int64_t top_k) {
  constexpr int kBlock = 64;
  auto one = [](int64_t) { return 1.0; };
  int64_t num_blocks = n / kBlock;
  Prefix bound = {0, n};
  if (top_k <= num_blocks) {
    float* largest_of = (float*)tokens;
    for (int64_t block = 0; block < num_blocks; ++block) {
      F most = load(scaled + block * kBlock);
      for (int i = W; i < kBlock; i += W) most = max(load(scaled + block * kBlock + i), most);
      largest_of[block] = largest(most);
    }
    bound = find_prefix(largest_of, num_blocks, {0, num_blocks}, (double)top_k, ids, one);
    bound.num_ties = n;
  }
  n = gather_prefix(scaled, probs, tokens, n, bound, true);
  if (n <= top_k) return n;
  Prefix prefix = find_prefix(scaled, n, {0, n}, (double)top_k, ids, one);
  return gather_prefix(scaled, probs, tokens, n, prefix, false);
}

// Leaves the tokens that weigh at least `floor`, in vocabulary order; how many.
static int64_t gather_likely(float* scaled, float* probs, int32_t* tokens, int64_t n,
                             float floor) {
  constexpr int64_t kBlock = 4 * W;
  int64_t count = 0;
  for (int64_t block = 0; block < n; block += kBlock) {
    int64_t end = block + kBlock;
    if (end <= n) {
      F most = load(probs + block);
      for (int64_t i = block + W; i < end; i += W) most = max(load(probs + i), most);
      if (largest(most) < floor) continue;
    }
    for (int64_t i = block; i < (end < n ? end : n); ++i) {
      if (!(probs[i] >= floor)) continue;
      scaled[count] = scaled[i];
      probs[count] = probs[i];
      tokens[count++] = (int32_t)i;
    }
  }
  return count;
}

// Sums of stretches of kSummed numbers; their total.
constexpr int64_t kSummed = 1024;
static double sum_stretches(const float* x, int64_t n, double* sums) {
  double total = 0;
  for (int64_t begin = 0; begin < n; begin += kSummed) {
    F lanes = zero();
    int64_t count = n - begin < kSummed ? n - begin : kSummed;
    each_vector(count, [&](int64_t i, auto load, auto) { lanes = lanes + load(x + begin + i); });
    sums[begin / kSummed] = sum(lanes);
    total += sums[begin / kSummed];
  }
  return total;
}

// What pick_from gives where all is kept: the stretch first, then the token in it.
static int32_t pick_among_all(const float* probs, int64_t n, const double* sums, double total,
                              float uniform) {
  double wanted = (double)uniform * total, running = 0;
  int64_t stretch = 0, last = (n - 1) / kSummed;
  while (stretch < last && !(running + sums[stretch] > wanted)) running += sums[stretch++];
  int64_t begin = stretch * kSummed, end = begin + kSummed < n ? begin + kSummed : n;
  int64_t found = begin;
  for (int64_t i = begin; i < end; ++i) {
    if (!(probs[i] > 0)) continue;
    running += probs[i];
    found = i;
    if (running > wanted) break;
  }
  return (int32_t)found;
}

static int32_t sample_row(const SampleArgs& a, int64_t row, float* memory) {
  int64_t n = a.vocab;
  const float* logits = a.logits + row * a.stride;
  float temperature = a.temperature[row];
  if (temperature == 0) return (int32_t)find_largest(logits, n);
  float* scaled = memory;
  float* probs = memory + n;
  int32_t* ids = (int32_t*)(memory + 2 * n);
  int32_t* tokens = (int32_t*)(memory + 3 * n);
  F divisor = splat(temperature), most = splat(-__builtin_inff());
  each_vector(n, [&](int64_t i, auto load, auto store) {
    store(scaled + i, load(logits + i) / divisor + zero());  // no -0: it ties with 0
  });
  float best = -__builtin_inff();
  int64_t i = 0;
  for (; i + W <= n; i += W) most = max(load(scaled + i), most);
  best = largest(most);
  for (; i < n; ++i) best = scaled[i] > best ? scaled[i] : best;
  F peak = splat(best);
  each_vector(n, [&](int64_t i, auto load, auto store) {
    store(probs + i, exp(load(scaled + i) - peak));
  });
  double* sums = (double*)ids;  // the ids are needed later
  double total = sum_stretches(probs, n, sums);
  int64_t top_k = a.has_filters ? a.top_k[row] : 0;
  float top_p = a.has_filters ? a.top_p[row] : 1, min_p = a.has_filters ? a.min_p[row] : 0;
  bool is_limited = top_k > 0 && top_k < n;
  if (!is_limited && top_p >= 1 && min_p <= 0) {
    return pick_among_all(probs, n, sums, total, a.uniform[row]);
  }
  Prefix prefix = {0, n};
  if (is_limited) {
    n = keep_likeliest(scaled, probs, tokens, ids, n, top_k);
    total = 0;
    for (int64_t i = 0; i < n; ++i) total += probs[i];
  } else {
    // All n tokens below such a weight add up to less than top_p leaves out; half, for rounding.
    float floor = top_p < 1 ? (float)(0.5 * (1 - (double)top_p) * total / n) : min_p;
    n = gather_likely(scaled, probs, tokens, n, floor);
  }
  prefix = {0, n};
  if (top_p < 1) {
    prefix = find_prefix(scaled, n, prefix, top_p * total, ids,
                         [probs](int64_t i) { return (double)probs[i]; });
  }
  if (min_p > 0) {
    // The likeliest weighs 1. Ties share their weight: all of one logit pass, or none.
    for (int64_t i = 0; i < n; ++i) probs[i] = probs[i] >= min_p ? probs[i] : 0.0f;
  }
  int32_t picked = pick_from(scaled, probs, n, prefix, a.uniform[row]);
  return n > 0 ? tokens[picked] : 0;
}

// Memory: 4 * vocab floats of the thread's own.
static void sample(const SampleArgs& a, int64_t begin, int64_t end) {
  float* memory = (float*)pool::own_memory(4 * a.vocab * sizeof(float));
  for (int64_t row = begin; row < end; ++row) a.out[row] = sample_row(a, row, memory);
}
