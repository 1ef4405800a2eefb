// Rows rounded to eight bits, or taken as pairs of bfloat16, as products of words want them. Included by
// isa.cpp.
//
// Words of 32 bits hold neighbouring inputs of a row: four codes or two bfloat16. Rows are worked on in
// tiles: [words of the row][rows of the tile], so that the inner loop of a product reads them one after
// another. A stretch of each row is rounded first, then the stretches of a tile are interleaved.

constexpr int kCodeRows = W == 16 ? 12 : 4;  // as many as registers hold
constexpr int64_t kStretchWords = 64;        // of a row, before they are interleaved

// Word w of row r of a tile stands at w * word + r * row.
struct WordStrides {
  int64_t word, row;
};

#if defined(__AVX512F__)
// 16 words of each of 16 rows, as 16 rows of each word.
static inline void transpose_words(const __m512i* rows, __m512i* out) {
  __m512i pairs[16], quads[16];
  for (int i = 0; i < 16; i += 2) {
    pairs[i] = _mm512_unpacklo_epi32(rows[i], rows[i + 1]);
    pairs[i + 1] = _mm512_unpackhi_epi32(rows[i], rows[i + 1]);
  }
  // quads[4 g + c]: word c of each lane of rows 4 g to 4 g + 3.
  for (int i = 0; i < 16; i += 4) {
    quads[i] = _mm512_unpacklo_epi64(pairs[i], pairs[i + 2]);
    quads[i + 1] = _mm512_unpackhi_epi64(pairs[i], pairs[i + 2]);
    quads[i + 2] = _mm512_unpacklo_epi64(pairs[i + 1], pairs[i + 3]);
    quads[i + 3] = _mm512_unpackhi_epi64(pairs[i + 1], pairs[i + 3]);
  }
  for (int c = 0; c < 4; ++c) {
    __m512i even = _mm512_shuffle_i32x4(quads[c], quads[4 + c], 0x88);
    __m512i odd = _mm512_shuffle_i32x4(quads[c], quads[4 + c], 0xdd);
    __m512i even_later = _mm512_shuffle_i32x4(quads[8 + c], quads[12 + c], 0x88);
    __m512i odd_later = _mm512_shuffle_i32x4(quads[8 + c], quads[12 + c], 0xdd);
    out[c] = _mm512_shuffle_i32x4(even, even_later, 0x88);
    out[4 + c] = _mm512_shuffle_i32x4(odd, odd_later, 0x88);
    out[8 + c] = _mm512_shuffle_i32x4(even, even_later, 0xdd);
    out[12 + c] = _mm512_shuffle_i32x4(odd, odd_later, 0xdd);
  }
}
#endif

// `count` words of each row, rows `row_bytes` apart, go to their places in a tile.
static inline void interleave(const char* words, int64_t row_bytes, int rows, int64_t count,
                              int32_t* to, WordStrides strides) {
  if (rows == 1 || strides.word == 1) {
    for (int r = 0; r < rows; ++r, words += row_bytes) {
      __builtin_memcpy(to + r * strides.row, words, count * 4);
    }
    return;
  }
#if defined(__AVX512F__)
  __mmask16 has_row = (__mmask16)((1 << rows) - 1);
  for (int64_t w = 0; w < count; w += 16) {
    int64_t left = count - w < 16 ? count - w : 16;
    __mmask16 has_word = (__mmask16)((1 << left) - 1);
    __m512i in[16] = {}, out[16];
    for (int r = 0; r < rows; ++r) {
      in[r] = _mm512_maskz_loadu_epi32(has_word, words + r * row_bytes + w * 4);
    }
    transpose_words(in, out);
    for (int64_t i = 0; i < left; ++i) {
      _mm512_mask_storeu_epi32(to + (w + i) * strides.word, has_row, out[i]);
    }
  }
#else
  for (int64_t w = 0; w < count; ++w) {
    for (int r = 0; r < rows; ++r) {
      __builtin_memcpy(to + w * strides.word + r, words + r * row_bytes + w * 4, 4);
    }
  }
#endif
}

template <class T>
static inline float largest_magnitude(const T* x, int64_t count) {
  F best = zero();
  each_vector(count, [&](int64_t i, auto load, auto) {
    F values = load(x + i);
    best = max(best, max(values, zero() - values));
  });
  return largest(best);
}

// Codes of `count` inputs, x times `inverse` to the nearest, which is in [-127, 127]; returns their sum.
template <class T>
static inline int32_t put_rounded(const T* x, int64_t count, float inverse, int32_t* words) {
  F factor = splat(inverse);
  I sum = zero_words();
  each_vector(count, [&](int64_t i, auto load, auto) {
    I codes = to_words(load(x + i) * factor);
    sum = add_words(sum, codes);
    put_codes(codes, words + i / 4);
  });
  return sum_words(sum);
}

// What x is divided by, and its inverse: both 0 for zeros, and for what is so small that it has no finite
// inverse, and is as good as zero.
struct CodeScale {
  float scale, inverse;
};
static inline CodeScale code_scale(float most) {
  bool is_zero = !(most > 1e-35f);
  return {is_zero ? 0.0f : most / 127.0f, is_zero ? 0.0f : 127.0f / most};
}

template <class T>
static void quantize_tile(const QuantizeArgs& a, int64_t tile) {
  alignas(64) int32_t words[kCodeRows][kStretchWords];
  int64_t first = tile * kCodeRows, left = a.rows - first;
  int rows = left < kCodeRows ? (int)left : kCodeRows;
  int64_t groups = a.k / a.group, at_once = kStretchWords * 4 / a.group;
  float* scales = a.scales + first * groups;
  float* sums = a.sums + first * groups;
  for (int64_t begin = 0; begin < groups; begin += at_once) {
    int64_t count = groups - begin < at_once ? groups - begin : at_once;
    for (int r = 0; r < rows; ++r) {
      const T* x = (const T*)a.x + (first + r) * a.stride + begin * a.group;
      for (int64_t g = 0; g < count; ++g, x += a.group) {
        auto [scale, inverse] = code_scale(largest_magnitude(x, a.group));
        int32_t sum = put_rounded(x, a.group, inverse, words[r] + g * a.group / 4);
        int64_t at = (begin + g) * rows + r;
        scales[at] = scale;
        if (a.zero) {
          ((int32_t*)sums)[at] = -a.zero * sum;
        } else {
          sums[at] = scale * (float)sum;
        }
      }
    }
    int64_t quads = a.group / 4;
    int32_t* to = a.codes + first * a.k / 4 + begin * quads * rows;
    interleave((const char*)words, sizeof(words[0]), rows, count * quads, to, {rows, 1});
  }
}

static void quantize_rows(Dtype dtype, const QuantizeArgs& a, int64_t begin, int64_t end) {
  for (int64_t tile = begin; tile < end; ++tile) {
    CHIPLET_DISPATCH(dtype, T, quantize_tile<T>(a, tile))
  }
}

static inline int64_t num_spans(const WordArgs& x) { return (x.k + x.span - 1) / x.span; }

static inline WordStrides word_strides(const WordArgs& a, int rows) {
  return a.is_tiled ? WordStrides{1, a.row_words} : WordStrides{rows, 1};
}

// What a row has beyond its inputs: zeros, since weights of zero times anything might be no number.
static inline void fill_row(const WordArgs& a, int32_t* words) {
  for (int64_t w = a.words; w < a.row_words; ++w) words[w] = 0;
}

// Tiles [begin, end) of rows of bfloat16 as words.
static void pair_rows(const WordArgs& a, int64_t begin, int64_t end) {
  for (int64_t tile = begin; tile < end; ++tile) {
    int64_t first = tile * kCodeRows, left = a.rows - first;
    int rows = left < kCodeRows ? (int)left : kCodeRows;
    WordStrides strides = word_strides(a, rows);
    const bf16* x = (const bf16*)a.x + first * a.stride;
    int32_t* to = a.x_words + first * a.row_words;
    interleave((const char*)x, a.stride * 2, rows, a.k / 2, to, strides);
    for (int r = 0; r < rows; ++r, to += strides.row) {
      if (a.k % 2) to[a.k / 2 * strides.word] = x[r * a.stride + a.k - 1].bits;
      if (a.is_tiled) fill_row(a, to);
    }
  }
}

// Scales of a row, one for each span.
template <class T>
static void scale_token(const WordArgs& a, int64_t row) {
  const T* x = (const T*)a.x + row * a.stride;
  int64_t spans = num_spans(a);
  for (int64_t s = 0; s < spans; ++s) {
    int64_t left = a.k - s * a.span;
    float scale = code_scale(largest_magnitude(x + s * a.span, left < a.span ? left : a.span)).scale;
    a.scales[row * spans + s] = scale > 0 ? scale : 1.0f;
    a.offsets[row * spans + s] = 0;
  }
}

// Words of inputs [begin, end) of a row.
template <class T>
static void put_token(const WordArgs& a, int64_t row, int64_t begin, int64_t end, int32_t* words) {
  const T* x = (const T*)a.x + row * a.stride;
  for (int64_t at = begin; at < end;) {
    int64_t s = at / a.span, index = row * num_spans(a) + s, next = (s + 1) * a.span;
    int64_t count = (next < end ? next : end) - at;
    int32_t sum = put_rounded(x + at, count, 1.0f / a.scales[index], words + (at - begin) / 4);
    a.offsets[index] -= 128 * sum;
    at += count;
  }
}

template <class T>
static void quantize_token_tile(const WordArgs& a, int64_t tile) {
  alignas(64) int32_t words[kCodeRows][kStretchWords];
  int64_t first = tile * kCodeRows, left = a.rows - first;
  int rows = left < kCodeRows ? (int)left : kCodeRows;
  WordStrides strides = word_strides(a, rows);
  int32_t* to = a.x_words + first * a.row_words;
  for (int r = 0; r < rows; ++r) scale_token<T>(a, first + r);
  for (int64_t w = 0; w < a.words; w += kStretchWords) {
    int64_t count = a.words - w < kStretchWords ? a.words - w : kStretchWords;
    int64_t end = 4 * (w + count) < a.k ? 4 * (w + count) : a.k;
    for (int r = 0; r < rows; ++r) put_token<T>(a, first + r, 4 * w, end, words[r]);
    interleave((const char*)words, sizeof(words[0]), rows, count, to + w * strides.word, strides);
  }
  for (int r = 0; r < rows && a.is_tiled; ++r) fill_row(a, to + r * strides.row);
}

static void quantize_tokens(Dtype dtype, const WordArgs& a, int64_t begin, int64_t end) {
  for (int64_t tile = begin; tile < end; ++tile) {
    CHIPLET_DISPATCH(dtype, T, quantize_token_tile<T>(a, tile))
  }
}
