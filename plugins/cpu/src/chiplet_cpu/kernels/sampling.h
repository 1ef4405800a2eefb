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

static int32_t pick_greedy(const float* logits, int64_t n) {
  int64_t best = 0;
  for (int64_t i = 1; i < n; ++i) best = logits[i] > logits[best] ? i : best;
  return best;
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

static int32_t sample_row(const SampleArgs& a, int64_t row, float* memory) {
  int64_t n = a.vocab;
  const float* logits = a.logits + row * a.stride;
  float temperature = a.temperature[row];
  if (temperature == 0) return pick_greedy(logits, n);
  float* scaled = memory;
  float* probs = memory + n;
  int32_t* ids = (int32_t*)(memory + 2 * n);
  int32_t* tokens = (int32_t*)(memory + 3 * n);
  bool is_compact = false;
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
  Prefix prefix = {0, n};
  if (a.has_filters) {
    int64_t top_k = a.top_k[row];
    if (top_k > 0 && top_k < n) {
      n = keep_likeliest(scaled, probs, tokens, ids, n, top_k);
      prefix = {0, n};
      is_compact = true;
    }
    if (a.top_p[row] < 1) {
      double mass = 0;
      int64_t ties = 0;
      for (int64_t i = 0; i < n; ++i) {
        uint32_t key = key_of(scaled[i]);
        bool kept = key > prefix.last_key || (key == prefix.last_key && ties++ < prefix.num_ties);
        mass += kept ? probs[i] : 0;
      }
      prefix = find_prefix(scaled, n, prefix, a.top_p[row] * mass, ids,
                           [probs](int64_t i) { return (double)probs[i]; });
    }
    if (a.min_p[row] > 0) {
      // The likeliest weighs 1. Ties share their weight: all of one logit pass, or none.
      for (int64_t i = 0; i < n; ++i) probs[i] = probs[i] >= a.min_p[row] ? probs[i] : 0.0f;
    }
  }
  int32_t picked = pick_from(scaled, probs, n, prefix, a.uniform[row]);
  return is_compact && n > 0 ? tokens[picked] : picked;
}

// Memory: 4 * vocab floats of the thread's own.
static void sample(const SampleArgs& a, int64_t begin, int64_t end) {
  float* memory = (float*)pool::own_memory(4 * a.vocab * sizeof(float));
  for (int64_t row = begin; row < end; ++row) a.out[row] = sample_row(a, row, memory);
}
