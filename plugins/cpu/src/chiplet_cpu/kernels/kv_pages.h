// Keys and values on their way into pages, and out of pages that hold them in eight bits. Included by
// isa.cpp; attention.h has the order of a page.
//
// Coded keys, or values, of one head in one page are a byte for each number, in the order of 16-bit
// pairs; where they have scales, a float32 for each token follows. Every code is a whole number below
// 256 or has four significant bits: exact in bfloat16, so that products are those of bfloat16 words,
// and scales are applied to scores and weights.

template <KvCoding coding>
static inline F load_codes(const uint8_t* p) {
  if constexpr (coding == KvCoding::int8) {
    return widen_bytes((const int8_t*)p);
  } else {
    // The bits of E4M3 at the place of float32's are too small by a power of two.
    Words bits = (Words)words_of(p);
    Words size = bits & 127;
    F value = (F)((bits & 128) << 24 | size << 20) * splat(0x1p120f);
    return (F)((Words)value | ((size == 127) & 0x7fc00000));
  }
}

static inline void store_exact(bf16* p, F a) {
#if defined(__AVX512BF16__)
  _mm256_storeu_si256((__m256i*)p, (__m256i)_mm512_cvtneps_pbh(a));
#else
  store(p, a);
#endif
}

template <KvCoding coding>
static void widen_codes(const uint8_t* codes, int64_t count, bf16* out) {
  for (int64_t i = 0; i < count; i += W) store_exact(out + i, load_codes<coding>(codes + i));
}

// Tokens of one head, out of their pages: pairs as in a page of `kTokens` tokens, and scales.
struct DecodedTokens {
  static constexpr int kTokens = kBlockTokens;
  bf16 *keys, *values;               // [head_dim, kTokens], as a page has them
  float *key_scales, *value_scales;  // [kTokens]; 0 where there is no token
};

// Tokens [offset, offset + count) of a page to place `at`; whole vectors, so that more may be written.
template <KvCoding coding>
static void decode_page(const uint8_t* keys, const uint8_t* values, int64_t offset, int64_t count,
                        int64_t page_size, int64_t d, int64_t at, const DecodedTokens& out) {
  int64_t whole = (count + 15) / 16 * 16;
  for (int64_t i = 0; i < d; i += 2) {
    widen_codes<coding>(keys + i * page_size + offset * 2, whole * 2,
                        out.keys + i * out.kTokens + at * 2);
  }
  widen_codes<coding>(values + offset * d, whole * d, out.values + at * d);
  if constexpr (coding == KvCoding::int8) {
    __builtin_memcpy(out.key_scales + at, keys + page_size * d + offset * 4, count * 4);
    __builtin_memcpy(out.value_scales + at, values + page_size * d + offset * 4, count * 4);
  }
}

static inline uint8_t to_e4m3(float x) {
  if (x != x) return 0x7f;
  uint8_t sign = __builtin_signbit(x) ? 0x80 : 0;
  float size = __builtin_fabsf(x) < 448.0f ? __builtin_fabsf(x) : 448.0f;
  // Below the smallest normal number, steps are equal: adding 1.5 * 2^23 rounds to whole ones.
  if (size < 0x1p-6f) return sign | (uint8_t)((size * 0x1p9f + 12582912.0f) - 12582912.0f);
  uint32_t bits;
  __builtin_memcpy(&bits, &size, 4);
  bits += 0x7ffff + (bits >> 20 & 1);
  return sign | (uint8_t)((bits >> 20) - ((127 - 7) << 3));
}

// One row of numbers as codes; its scale.
static inline float encode_row(KvCoding coding, const float* x, int64_t d, uint8_t* codes) {
  if (coding == KvCoding::fp8) {
    for (int64_t i = 0; i < d; ++i) codes[i] = to_e4m3(x[i]);
    return 1;
  }
  F most = zero();
  for (int64_t i = 0; i < d; i += W) {
    F values = load(x + i);
    most = max(most, max(values, zero() - values));
  }
  float peak = largest(most), inverse = peak < 1e-30f ? 0 : 127 / peak;
  alignas(64) float rounded[W];
  for (int64_t i = 0; i < d; i += W) {
    store(rounded, round(load(x + i) * splat(inverse)));
    for (int lane = 0; lane < W; ++lane) codes[i + lane] = (uint8_t)(int8_t)rounded[lane];
  }
  return peak / 127;
}

// Keys and values of tokens [begin, end) into their pages, as codes.
template <class T>
static void write_coded_rows(const KvWriteArgs& a, int64_t begin, int64_t end) {
  int64_t d = a.head_dim, head_size = a.page_size * row_width(a.coding, d);
  float* wide = (float*)pool::own_memory(d * 5);
  uint8_t* codes = (uint8_t*)(wide + d);
  auto encode = [&](const T* row) {
    for (int64_t i = 0; i < d; i += W) store(wide + i, load(row + i));
    return encode_row(a.coding, wide, d, codes);
  };
  for (int64_t token = begin; token < end; ++token) {
    int64_t page = a.kv_rows[token] / a.page_size, at = a.kv_rows[token] % a.page_size;
    uint8_t* keys = (uint8_t*)a.kv + page * 2 * a.num_kv_heads * head_size;
    for (int64_t head = 0; head < a.num_kv_heads; ++head, keys += head_size) {
      uint8_t* values = keys + a.num_kv_heads * head_size;
      float scales[2];
      scales[0] = encode((const T*)a.k + token * a.k_row_stride + head * a.k_head_stride);
      for (int64_t i = 0; i < d; ++i) keys[(i / 2 * a.page_size + at) * 2 + i % 2] = codes[i];
      scales[1] = encode((const T*)a.v + token * a.v_row_stride + head * a.v_head_stride);
      for (int64_t i = 0; i < d; ++i) values[(at / 2 * d + i) * 2 + at % 2] = codes[i];
      if (a.coding != KvCoding::int8) continue;
      __builtin_memcpy(keys + a.page_size * d + at * 4, &scales[0], 4);
      __builtin_memcpy(values + a.page_size * d + at * 4, &scales[1], 4);
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
  if (a.coding != KvCoding::none) {
    CHIPLET_DISPATCH(a.dtype, T, write_coded_rows<T>(a, begin, end))
    return;
  }
  CHIPLET_DISPATCH(a.dtype, T, CHIPLET_DISPATCH(a.kv_dtype, K, {
                     write_kv_rows<T, K>(a, begin, end);
                   }))
}
