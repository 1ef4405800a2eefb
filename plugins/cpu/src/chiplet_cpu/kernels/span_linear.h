// Coded weights rounded to eight bits on the fly, for products with many rows. Included by isa.cpp.
//
// Tiles multiply bytes with bytes. A panel is rounded once for all rows to eight bits with one scale for
// a span of an output's inputs, into memory of the thread: that adds at most half of 1/127 of the
// span's largest weight. x keeps a scale for every 32 inputs, as its outliers are what costs precision
// (benchmarks/cpu_notes.md has figures, also of what this would save without tiles).
//
// With a weight of s q + m (m = -s z where there are no minima) and the span's scale S, its code is
// the upper byte of q a + b, in halves of 16 bits: a = 256 s / S, b = 256 (m / S + 128) + 128.

// Inputs of a span of weights: about 384, all spans alike, whole groups of any coding.
static inline int64_t weight_span(int64_t k) {
  int64_t count = (k + 383) / 384;
  return (k + 32 * count - 1) / (32 * count) * 32;
}

// The words of one group, in the order of the panel.
template <class B, int j = 0>
static inline void round_quads(const uint8_t* block, int g, int v, I factor, I offset,
                               uint8_t* out) {
  if constexpr (j < B::kGroup / 4) {
    I codes = B::template codes<j>(block, g, v);
    I even = add_halves(mul_halves(even_bytes(codes), factor), offset);
    I odd = add_halves(mul_halves(odd_bytes(codes), factor), offset);
    store_bytes(out + j * kQuad + v * 4 * W, high_bytes(even, odd));
    round_quads<B, j + 1>(block, g, v, factor, offset, out);
  }
}

// Vector v of groups [begin, end), which share a scale; that scale.
template <class B>
static inline F round_span(const uint8_t* panel, int64_t begin, int64_t end, int v, uint8_t* out) {
  constexpr int64_t kGroups = B::kBlock / B::kGroup;
  auto minimum = [](const uint8_t* block, int g, int v, F scale) {
    return B::kHasMinima ? B::minimum(block, g, v) : scale * splat(-(float)B::kZero);
  };
  F most = zero();
  for (int64_t i = begin; i < end; ++i) {
    const uint8_t* block = panel + i / kGroups * B::kBytes;
    int g = (int)(i % kGroups);
    F scale = B::scale(block, g, v), low = minimum(block, g, v, scale);
    F high = fma(scale, splat((float)B::kMost), low);
    most = max(most, max(max(low, zero() - low), max(high, zero() - high)));
  }
  // A span of zeros has any scale.
  F unit = max(most, splat(1e-30f)) * splat(1.0f / 127.0f);
  for (int64_t i = begin; i < end; ++i) {
    const uint8_t* block = panel + i / kGroups * B::kBytes;
    int g = (int)(i % kGroups);
    F scale = B::scale(block, g, v);
    F factor = round(scale / unit * splat(256.0f));
    // Without minima the same factor, so that a code of zero stays one.
    F low = B::kHasMinima ? round(B::minimum(block, g, v) / unit * splat(256.0f))
                          : factor * splat(-(float)B::kZero);
    I offset = to_words(low + splat(128.0f * 256.0f + 128.0f));
    round_quads<B>(block, g, v, twice(to_words(factor)), twice(offset),
                   out + i * (B::kGroup / 4) * kQuad);
  }
  return unit;
}

static inline int64_t rounded_bytes(int64_t k) {
  int64_t spans = (k + weight_span(k) - 1) / weight_span(k);
  return k / 4 * kQuad + spans * kPanel * sizeof(float);
}

// A panel as word_linear.h reads it: all words, then scales [spans][kPanel].
template <class B>
static void round_panel(const uint8_t* panel, int64_t k, uint8_t* out) {
  float* scales = (float*)(out + k / 4 * kQuad);
  int64_t groups = k / B::kGroup, step = weight_span(k) / B::kGroup;
  for (int64_t begin = 0; begin < groups; begin += step, scales += kPanel) {
    int64_t end = groups - begin < step ? groups : begin + step;
    for (int v = 0; v < V; ++v) store(scales + v * W, round_span<B>(panel, begin, end, v, out));
  }
}
