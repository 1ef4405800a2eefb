// Packed weights in blocks, as panels. Included by isa.cpp; pack.cpp and linear/panels.py write them.
//
// A panel holds kPanel output features, one block of input features after another. A block has its
// heads (scales, minima), one per output, and then its codes: whole numbers of at most eight bits.
// Codes stand where the integer products want them: "quad" j of a group of 32 is 64 bytes, four
// neighbouring inputs (4 j to 4 j + 3) of each output in turn. Of 4-bit parts, quad j is in the low
// halves and quad j + 4 in the high halves of the same bytes, for j below 4.
//
// Each struct below describes one coding; its functions give vector v of a panel.
//   kBlock, kGroup    inputs in one block, and inputs that share a scale
//   kBytes            of one block of a panel
//   kZero             what is subtracted from a code before it is scaled
//   kHasMinima        a minimum is added after scaling
//   kIsSmall          codes are below 128
//   kMost             the largest code
//   scale, minimum    of group g, per output
//   codes<j>          quad j of group g

constexpr int V = kPanel / W;  // vectors across a panel

// Vectors of bytes and words, in the compiler's own operations: they become single instructions of
// each set, but for the sums of products below.
typedef int32_t Words __attribute__((vector_size(4 * W)));
typedef float Floats __attribute__((vector_size(4 * W)));
typedef uint16_t HalfWords __attribute__((vector_size(4 * W)));

static inline I load_bytes(const uint8_t* p) {
  I a;
  __builtin_memcpy(&a, p, sizeof(a));
  return a;
}
static inline void store_bytes(uint8_t* p, I a) { __builtin_memcpy(p, &a, sizeof(a)); }
static inline I splat_word(int32_t x) { return (I)(Words{} + x); }
static inline I zero_words() { return I{}; }
static inline I both(I a, I b) { return a | b; }
static inline I add_words(I a, I b) { return (I)((Words)a + (Words)b); }
static inline F low_bf16(I a) { return (F)((Words)a << 16); }
static inline F high_bf16(I a) { return (F)((Words)a & (int32_t)0xffff0000); }
static inline F to_float(I a) { return (F)__builtin_convertvector((Words)a, Floats); }
// Halves are the 16-bit parts of words. `twice`: the lower one in both. `even_bytes` and `odd_bytes`
// make halves of bytes; `high_bytes` makes bytes of the upper eight bits of two such vectors.
static inline I twice(I a) { return (I)(((Words)a & 0xffff) | (Words)a << 16); }
static inline I mul_halves(I a, I b) { return (I)((HalfWords)a * (HalfWords)b); }
static inline I add_halves(I a, I b) { return (I)((HalfWords)a + (HalfWords)b); }
static inline I even_bytes(I a) { return (I)((HalfWords)a & 255); }
static inline I odd_bytes(I a) { return (I)((HalfWords)a >> 8); }
static inline I high_bytes(I even, I odd) {
  return (I)((HalfWords)even >> 8 | ((HalfWords)odd & 0xff00));
}
// `sum_words`: of all words. `to_words`: to the nearest whole number. `put_codes`: the low bytes of W words, four
// to a word.
#if defined(__AVX512F__)
static inline int32_t sum_words(I a) { return _mm512_reduce_add_epi32(a); }
static inline I to_words(F a) { return _mm512_cvtps_epi32(a); }
static inline void put_codes(I a, int32_t* to) {
  _mm_storeu_si128((__m128i*)to, _mm512_cvtepi32_epi8(a));
}
#else
static inline int32_t sum_words(I a) {
  alignas(64) int32_t words[W];
  __builtin_memcpy(words, &a, sizeof(a));
  int32_t sum = 0;
  for (int32_t each : words) sum += each;
  return sum;
}
#if defined(__AVX2__)
static inline I to_words(F a) { return _mm256_cvtps_epi32(a); }
static inline void put_codes(I a, int32_t* to) {
  // Pairs of 16, then of eight bits; each half of the register by itself.
  __m256i halves = _mm256_packs_epi32(a, a), bytes = _mm256_packs_epi16(halves, halves);
  to[0] = _mm256_extract_epi32(bytes, 0);
  to[1] = _mm256_extract_epi32(bytes, 4);
}
#else
static inline I to_words(F a) { return __builtin_convertvector(round(a), I); }
static inline void put_codes(I a, int32_t* to) {
  int8_t codes[W];
  for (int i = 0; i < W; ++i) codes[i] = (int8_t)a[i];
  __builtin_memcpy(to, codes, W);
}
#endif
#endif
// The compiler's own conversion would take bytes one by one.
#if defined(__AVX512F__)
static inline I words_of(const uint8_t* p) {
  return _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)p));
}
static inline I words_of(const int8_t* p) {
  return _mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)p));
}
#elif defined(__AVX2__)
static inline I words_of(const uint8_t* p) {
  return _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)p));
}
static inline I words_of(const int8_t* p) {
  return _mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)p));
}
#else
template <class Byte>
static inline I words_of(const Byte* p) {
  I a;
  for (int i = 0; i < W; ++i) a[i] = p[i];
  return a;
}
#endif
template <class Byte>
static inline F widen_bytes(const Byte* p) {
  return to_float(words_of(p));
}
// Each byte moved right (left where negative), and masked. `byte_of`: byte b of each word.
template <int right>
static inline I bits(I a, uint8_t mask) {
  HalfWords moved = right >= 0 ? (HalfWords)a >> (right >= 0 ? right : 0)
                               : (HalfWords)a << (right < 0 ? -right : 0);
  return (I)(moved & (uint16_t)(mask * 0x101));
}
template <int b>
static inline F byte_of(I a) {
  return to_float((I)((Words)a >> (8 * b) & 255));
}

// Sums of four products of an unsigned and a signed byte, added to each word. Without instructions
// for it, sums of two products must fit 16 bits: codes that are not small go in two parts.
#if defined(__AVX512VNNI__)
template <bool is_small>
static inline I dot(I sums, I codes, I x) {
  return _mm512_dpbusd_epi32(sums, codes, x);
}
#elif defined(__AVX2__)
#if defined(__AVX512F__)
static inline I multiply_bytes(I codes, I x) { return _mm512_maddubs_epi16(codes, x); }
static inline I multiply_pairs(I pairs, int16_t factor) {
  return _mm512_madd_epi16(pairs, _mm512_set1_epi16(factor));
}
#else
static inline I multiply_bytes(I codes, I x) { return _mm256_maddubs_epi16(codes, x); }
static inline I multiply_pairs(I pairs, int16_t factor) {
  return _mm256_madd_epi16(pairs, _mm256_set1_epi16(factor));
}
#endif
template <bool is_small>
static inline I dot(I sums, I codes, I x) {
  if constexpr (is_small) return add_words(sums, multiply_pairs(multiply_bytes(codes, x), 1));
  I low = multiply_pairs(multiply_bytes(bits<0>(codes, 127), x), 1);
  I high = multiply_pairs(multiply_bytes(bits<7>(codes, 1), x), 128);
  return add_words(add_words(sums, low), high);
}
#else
template <bool is_small>
static inline I dot(I sums, I codes, I x) {
  typedef uint8_t Bytes __attribute__((vector_size(4 * W)));
  typedef int8_t SignedBytes __attribute__((vector_size(4 * W)));
  Bytes a = (Bytes)codes;
  SignedBytes b = (SignedBytes)x;
  for (int i = 0; i < 4 * W; ++i) sums[i / 4] += (int32_t)a[i] * b[i];
  return sums;
}
#endif

constexpr int kQuad = 4 * kPanel;  // bytes of four inputs of all outputs

static inline const f16* halves(const uint8_t* block, int row, int v) {
  return (const f16*)block + row * kPanel + v * W;
}
// Quad j out of 4-bit parts of 32 inputs.
template <int j>
static inline I nibbles(const uint8_t* codes, int v) {
  return bits<(j < 4 ? 0 : 4)>(load_bytes(codes + j % 4 * kQuad + v * 4 * W), 15);
}

template <bool has_minima>
struct Int4Blocks {
  static constexpr int kBlock = 32, kGroup = 32;
  static constexpr int kHead = (has_minima ? 4 : 2) * kPanel, kBytes = kHead + 4 * kQuad;
  static constexpr int kZero = has_minima ? 0 : 8;
  static constexpr int kMost = 15;
  static constexpr bool kHasMinima = has_minima, kIsSmall = true;
  static F scale(const uint8_t* block, int, int v) { return load(halves(block, 0, v)); }
  static F minimum(const uint8_t* block, int, int v) { return load(halves(block, 1, v)); }
  template <int j>
  static I codes(const uint8_t* block, int, int v) {
    return nibbles<j>(block + kHead, v);
  }
};
using Q4_0 = Int4Blocks<false>;
using Q4_1 = Int4Blocks<true>;

struct Q8_0 {
  static constexpr int kBlock = 32, kGroup = 32;
  static constexpr int kHead = 2 * kPanel, kBytes = kHead + 8 * kQuad;
  static constexpr int kZero = 128;
  static constexpr int kMost = 255;
  static constexpr bool kHasMinima = false, kIsSmall = false;
  static F scale(const uint8_t* block, int, int v) { return load(halves(block, 0, v)); }
  static F minimum(const uint8_t*, int, int) { return zero(); }
  template <int j>
  static I codes(const uint8_t* block, int, int v) {
    return load_bytes(block + kHead + j * kQuad + v * 4 * W);
  }
};

// Heads: d and dmin, float16; scales and minima of the 8 groups, a byte each. A group's scale is d
// times its byte, its minimum -dmin times its byte. Codes of a group: four bits, then (of five) the
// fifth bits, bit j of a byte for quad j.
template <bool has_fifth>
struct KBlocks {
  static constexpr int kBlock = 256, kGroup = 32;
  static constexpr int kScales = 4 * kPanel, kMinima = kScales + 8 * kPanel;
  static constexpr int kHead = kMinima + 8 * kPanel, kGroupBytes = (has_fifth ? 5 : 4) * kQuad;
  static constexpr int kBytes = kHead + 8 * kGroupBytes;
  static constexpr int kZero = 0, kMost = has_fifth ? 31 : 15;
  static constexpr bool kHasMinima = true, kIsSmall = true;
  static F scale(const uint8_t* block, int g, int v) {
    return load(halves(block, 0, v)) * widen_bytes(block + kScales + g * kPanel + v * W);
  }
  static F minimum(const uint8_t* block, int g, int v) {
    F factor = widen_bytes(block + kMinima + g * kPanel + v * W);
    return load(halves(block, 1, v)) * (zero() - factor);
  }
  template <int j>
  static I codes(const uint8_t* block, int g, int v) {
    const uint8_t* group = block + kHead + g * kGroupBytes;
    I low = nibbles<j>(group, v);
    if constexpr (!has_fifth) return low;
    return both(low, bits<j - 4>(load_bytes(group + 4 * kQuad + v * 4 * W), 16));
  }
};
using Q4_K = KBlocks<false>;
using Q5_K = KBlocks<true>;

// Heads: d, float16; scales of the 16 groups of 16, a signed byte each. Codes of two groups: four
// bits, then two bytes' worth of the upper two bits: bits 2 j of the first for quad j, of the second
// for quad j + 4.
struct Q6_K {
  static constexpr int kBlock = 256, kGroup = 16;
  static constexpr int kScales = 2 * kPanel, kHead = kScales + 16 * kPanel;
  static constexpr int kPairBytes = 6 * kQuad, kBytes = kHead + 8 * kPairBytes;
  static constexpr int kZero = 32, kMost = 63;
  static constexpr bool kHasMinima = false, kIsSmall = true;
  static F scale(const uint8_t* block, int g, int v) {
    const int8_t* factors = (const int8_t*)block + kScales + g * kPanel + v * W;
    return load(halves(block, 0, v)) * widen_bytes(factors);
  }
  static F minimum(const uint8_t*, int, int) { return zero(); }
  template <int j>
  static I codes(const uint8_t* block, int g, int v) {
    const uint8_t* pair = block + kHead + g / 2 * kPairBytes;
    I high = bits<2 * j - 4>(load_bytes(pair + (4 + g % 2) * kQuad + v * 4 * W), 48);
    // The group's parity says which halves: known only at run time.
    const uint8_t* at = pair + j * kQuad + v * 4 * W;
    return both(g % 2 ? bits<4>(load_bytes(at), 15) : bits<0>(load_bytes(at), 15), high);
  }
};

// Groups of G inputs, of other checkpoints than GGUF's. Heads: scales and minima, float32.
template <int G>
struct Int4Groups {
  static constexpr int kBlock = G, kGroup = 32;
  static constexpr int kHead = 8 * kPanel, kBytes = kHead + G / 32 * 4 * kQuad;
  static constexpr int kZero = 0, kMost = 15;
  static constexpr bool kHasMinima = true, kIsSmall = true;
  static F scale(const uint8_t* block, int, int v) { return load((const float*)block + v * W); }
  static F minimum(const uint8_t* block, int, int v) {
    return load((const float*)block + kPanel + v * W);
  }
  template <int j>
  static I codes(const uint8_t* block, int g, int v) {
    return nibbles<j>(block + kHead + g * 4 * kQuad, v);
  }
};

// Calls body(B{}) with the struct of a coding; false if the coding is not one of blocks.
template <class Body>
static bool with_blocks(Coding coding, Body body) {
  switch (coding) {
    case Coding::q4_0: body(Q4_0{}); return true;
    case Coding::q4_1: body(Q4_1{}); return true;
    case Coding::q8_0: body(Q8_0{}); return true;
    case Coding::q4_k: body(Q4_K{}); return true;
    case Coding::q5_k: body(Q5_K{}); return true;
    case Coding::q6_k: body(Q6_K{}); return true;
    case Coding::int4_32: body(Int4Groups<32>{}); return true;
    case Coding::int4_64: body(Int4Groups<64>{}); return true;
    case Coding::int4_128: body(Int4Groups<128>{}); return true;
    default: return false;
  }
}
