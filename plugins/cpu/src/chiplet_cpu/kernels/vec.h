// A vector of floats in the widest registers that this file is compiled for.
//
// Included only by isa.cpp, inside its namespace: each instruction set has its own copies of
// everything here, so that the linker can never hand one set's code to another.
//
// Names: W lanes of F; load and store convert from and to bf16 and f16; the `_some` forms touch
// only the first `count` elements. A new instruction set (NEON, SVE) is one more block like the
// first two; until then the last block serves it, through the compiler's own vectors.

#if defined(__AVX512F__)

constexpr int W = 16;
using F = __m512;
using I = __m512i;

static inline F zero() { return _mm512_setzero_ps(); }
static inline F splat(float x) { return _mm512_set1_ps(x); }
static inline F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
static inline F max(F a, F b) { return _mm512_max_ps(a, b); }
static inline F min(F a, F b) { return _mm512_min_ps(a, b); }
static inline F round(F a) { return _mm512_roundscale_ps(a, 0); }
static inline float sum(F a) { return _mm512_reduce_add_ps(a); }
static inline float largest(F a) { return _mm512_reduce_max_ps(a); }
// a * 2^n for whole n; 0 where x < limit.
static inline F scale_by_power(F a, F n, F x, F limit) {
  return _mm512_maskz_scalef_ps(_mm512_cmp_ps_mask(x, limit, _CMP_NLT_UQ), a, n);
}
static inline F load(const float* p) { return _mm512_loadu_ps(p); }
static inline F load(const bf16* p) {
  return _mm512_castsi512_ps(
      _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p)), 16));
}
static inline F load(const f16* p) {
  return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p));
}
static inline void store(float* p, F a) { _mm512_storeu_ps(p, a); }
static inline void store(bf16* p, F a) {
  __m512i bits = _mm512_castps_si512(a);
  __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
  rounded = _mm512_mask_mov_epi32(rounded, _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q),
                                  _mm512_set1_epi32(0x7fc00000));
  _mm256_storeu_si256((__m256i*)p, _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16)));
}
static inline void store(f16* p, F a) {
  _mm256_storeu_si256((__m256i*)p, _mm512_cvtps_ph(a, 0));
}

#elif defined(__AVX2__)

constexpr int W = 8;
using F = __m256;
using I = __m256i;

static inline F zero() { return _mm256_setzero_ps(); }
static inline F splat(float x) { return _mm256_set1_ps(x); }
static inline F fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
static inline F max(F a, F b) { return _mm256_max_ps(a, b); }
static inline F min(F a, F b) { return _mm256_min_ps(a, b); }
static inline F round(F a) { return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT); }
static inline float sum(F a) {
  __m128 half = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
  half = _mm_add_ps(half, _mm_movehl_ps(half, half));
  return _mm_cvtss_f32(_mm_add_ss(half, _mm_movehdup_ps(half)));
}
static inline float largest(F a) {
  __m128 half = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
  half = _mm_max_ps(half, _mm_movehl_ps(half, half));
  return _mm_cvtss_f32(_mm_max_ss(half, _mm_movehdup_ps(half)));
}
static inline F scale_by_power(F a, F n, F x, F limit) {
  __m256i power = _mm256_slli_epi32(_mm256_cvtps_epi32(n), 23);
  F scaled = _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(a), power));
  return _mm256_and_ps(scaled, _mm256_cmp_ps(x, limit, _CMP_NLT_UQ));
}
static inline F load(const float* p) { return _mm256_loadu_ps(p); }
static inline F load(const bf16* p) {
  return _mm256_castsi256_ps(
      _mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p)), 16));
}
static inline F load(const f16* p) { return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p)); }
static inline void store(float* p, F a) { _mm256_storeu_ps(p, a); }
static inline void store(bf16* p, F a) {
  __m256i bits = _mm256_castps_si256(a);
  __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
  __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(a, a, _CMP_UNORD_Q));
  rounded = _mm256_blendv_epi8(rounded, _mm256_set1_epi32(0x7fc00000), nan);
  rounded = _mm256_srli_epi32(rounded, 16);
  __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(rounded, rounded), 0x08);
  _mm_storeu_si128((__m128i*)p, _mm256_castsi256_si128(packed));
}
static inline void store(f16* p, F a) { _mm_storeu_si128((__m128i*)p, _mm256_cvtps_ph(a, 0)); }

#else  // portable

constexpr int W = 8;
typedef float F __attribute__((vector_size(32)));
typedef int32_t I __attribute__((vector_size(32)));

static inline F splat(float x) { return F{x, x, x, x, x, x, x, x}; }
static inline F zero() { return splat(0); }
static inline F fma(F a, F b, F c) { return a * b + c; }
static inline F max(F a, F b) { return a > b ? a : b; }
static inline F min(F a, F b) { return a < b ? a : b; }
static inline F round(F a) {
  F big = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to a whole number
  return (a + big) - big;
}
static inline float sum(F a) {
  float total = 0;
  for (int i = 0; i < W; ++i) total += a[i];
  return total;
}
static inline float largest(F a) {
  float best = a[0];
  for (int i = 1; i < W; ++i) best = a[i] > best ? a[i] : best;
  return best;
}
static inline F scale_by_power(F a, F n, F x, F limit) {
  I power = __builtin_convertvector(n, I) << 23;
  I kept = ~(x < limit);
  return (F)(((I)a + power) & kept);
}
static inline float float_of(uint32_t bits) {
  float x;
  __builtin_memcpy(&x, &bits, 4);
  return x;
}
static inline uint32_t bits_of(float x) {
  uint32_t bits;
  __builtin_memcpy(&bits, &x, 4);
  return bits;
}
static inline float widen(float x) { return x; }
static inline float widen(bf16 x) { return float_of((uint32_t)x.bits << 16); }
static inline float widen(f16 x) {
  uint32_t sign = (uint32_t)(x.bits & 0x8000) << 16, rest = x.bits & 0x7fff;
  if (rest >= 0x7c00) return float_of(sign | 0x7f800000 | (rest & 0x3ff) << 13);
  // Scaling by 2^112 puts the exponent right, for subnormal numbers too.
  return float_of(sign | bits_of(float_of(rest << 13) * 0x1p112f));
}
static inline void narrow(float* p, float x) { *p = x; }
static inline void narrow(bf16* p, float x) {
  uint32_t bits = bits_of(x);
  p->bits = x != x ? 0x7fc0 : (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}
static inline void narrow(f16* p, float x) {
  uint32_t bits = bits_of(x), sign = bits >> 16 & 0x8000, size = bits & 0x7fffffff;
  if (size >= 0x47800000) {  // 65536 and above, infinity, NaN
    p->bits = sign | (size > 0x7f800000 ? 0x7e00 : 0x7c00);
  } else if (size < 0x38800000) {  // subnormal: adding 0.5 rounds at the right place
    p->bits = sign | (bits_of(float_of(size) + 0.5f) - 0x3f000000);
  } else {
    p->bits = sign | ((size - 0x38000000 + 0xfff + (size >> 13 & 1)) >> 13);
  }
}
template <class T>
static inline F load(const T* p) {
  F a;
  for (int i = 0; i < W; ++i) a[i] = widen(p[i]);
  return a;
}
template <class T>
static inline void store(T* p, F a) {
  for (int i = 0; i < W; ++i) narrow(p + i, a[i]);
}

#endif

// A single number, by the same conversion.
template <class T>
static inline float one_as_float(const T* p) {
  T copy[W] = {*p};
  alignas(64) float wide[W];
  store(wide, load(copy));
  return wide[0];
}

template <class T>
static inline F load_some(const T* p, int count) {
  T copy[W] = {};
  for (int i = 0; i < count; ++i) copy[i] = p[i];
  return load(copy);
}
template <class T>
static inline void store_some(T* p, F a, int count) {
  T copy[W];
  store(copy, a);
  for (int i = 0; i < count; ++i) p[i] = copy[i];
}

// Calls body(index, load, store) for every vector of n elements, the last one possibly partial.
template <class Body>
static inline void each_vector(int64_t n, Body body) {
  int64_t i = 0;
  for (; i + W <= n; i += W) {
    body(
        i, [](const auto* p) { return load(p); }, [](auto* p, F a) { store(p, a); });
  }
  if (int count = n - i) {
    body(
        i, [count](const auto* p) { return load_some(p, count); },
        [count](auto* p, F a) { store_some(p, a, count); });
  }
}

// e^x within 2 units in the last place; 0 below -87, where float32 has no more normal numbers.
// Source: Cephes, expf: x = n ln 2 + r, a polynomial of degree 5 in r.
static inline F exp(F x) {
  F limit = splat(-87.0f);
  F bounded = min(splat(88.0f), max(limit, x));
  F n = round(bounded * splat(1.44269504088896341f));
  F r = fma(n, splat(-0.693359375f), bounded);
  r = fma(n, splat(2.12194440e-4f), r);
  F p = splat(1.9875691500e-4f);
  p = fma(p, r, splat(1.3981999507e-3f));
  p = fma(p, r, splat(8.3334519073e-3f));
  p = fma(p, r, splat(4.1665795894e-2f));
  p = fma(p, r, splat(1.6666665459e-1f));
  p = fma(p, r, splat(5.0000001201e-1f));
  p = fma(p * r, r, r + splat(1.0f));
  return scale_by_power(p, n, x, limit);
}

// tanh x within 4 units in the last place. Source: Eigen's rational function, of degrees 13 and 6;
// beyond its bounds tanh rounds to 1.
static inline F tanh(F x) {
  x = min(splat(7.90531110763549805f), max(splat(-7.90531110763549805f), x));
  F square = x * x;
  F p = splat(-2.76076847742355e-16f);
  p = fma(p, square, splat(2.00018790482477e-13f));
  p = fma(p, square, splat(-8.60467152213735e-11f));
  p = fma(p, square, splat(5.12229709037114e-08f));
  p = fma(p, square, splat(1.48572235717979e-05f));
  p = fma(p, square, splat(6.37261928875436e-04f));
  p = fma(p, square, splat(4.89352455891786e-03f));
  F q = splat(1.19825839466702e-06f);
  q = fma(q, square, splat(1.18534705686654e-04f));
  q = fma(q, square, splat(2.26843463243900e-03f));
  q = fma(q, square, splat(4.89352518554385e-03f));
  return x * p / q;
}
