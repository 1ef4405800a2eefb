// Norms, rotation and activation. Included by isa.cpp.

template <class T>
static void rms_norm_rows(const NormArgs& a, int64_t begin, int64_t end) {
  const T* weight = (const T*)a.weight;
  for (int64_t row = begin; row < end; ++row) {
    const T* x = (const T*)a.x + row * a.x_stride;
    F squares = zero();
    if (a.residual) {
      const T* residual = (const T*)a.residual + row * a.residual_stride;
      T* total = (T*)a.total + row * a.width;
      // The norm is that of the sum as it is stored.
      each_vector(a.width, [&](int64_t i, auto load, auto store) {
        store(total + i, load(x + i) + load(residual + i));
        F value = load(total + i);
        squares = fma(value, value, squares);
      });
      x = total;
    } else {
      each_vector(a.width, [&](int64_t i, auto load, auto) {
        F value = load(x + i);
        squares = fma(value, value, squares);
      });
    }
    F inverse = splat(1.0f / __builtin_sqrtf(sum(squares) / a.width + a.eps));
    T* out = (T*)a.out + row * a.width;
    each_vector(a.width, [&](int64_t i, auto load, auto store) {
      store(out + i, load(x + i) * inverse * load(weight + i));
    });
  }
}

static void rms_norm(Dtype dtype, const NormArgs& a, int64_t begin, int64_t end) {
  CHIPLET_DISPATCH(dtype, T, rms_norm_rows<T>(a, begin, end))
}

template <class T>
static void rotary_rows(const RotaryArgs& a, int64_t begin, int64_t end) {
  int64_t half = a.head_dim / 2;
  for (int64_t row = begin; row < end; ++row) {
    const float* cos = a.cos_sin + a.positions[row] * a.head_dim;
    const float* sin = cos + half;
    for (int64_t head = 0; head < a.num_heads; ++head) {
      const T* x = (const T*)a.x + row * a.row_stride + head * a.head_stride;
      T* out = (T*)a.out + (row * a.num_heads + head) * a.head_dim;
      each_vector(half, [&](int64_t i, auto load, auto store) {
        F first = load(x + i), second = load(x + half + i);
        F c = load(cos + i), s = load(sin + i);
        store(out + i, fma(first, c, zero() - second * s));
        store(out + half + i, fma(second, c, first * s));
      });
    }
  }
}

static void rotary(Dtype dtype, const RotaryArgs& a, int64_t begin, int64_t end) {
  CHIPLET_DISPATCH(dtype, T, rotary_rows<T>(a, begin, end))
}

template <class T>
static void silu_mul_rows(const SiluMulArgs& a, int64_t begin, int64_t end) {
  F one = splat(1.0f);
  for (int64_t row = begin; row < end; ++row) {
    const T* gate = (const T*)a.gate_up + row * a.stride;
    const T* up = gate + a.width;
    T* out = (T*)a.out + row * a.width;
    each_vector(a.width, [&](int64_t i, auto load, auto store) {
      F x = load(gate + i);
      store(out + i, x / (one + exp(zero() - x)) * load(up + i));
    });
  }
}

static void silu_mul(Dtype dtype, const SiluMulArgs& a, int64_t begin, int64_t end) {
  CHIPLET_DISPATCH(dtype, T, silu_mul_rows<T>(a, begin, end))
}

// In float32, and rounded once.
template <class T>
static void sum_elements(const SumArgs& a, int64_t begin, int64_t end) {
  each_vector(end - begin, [&](int64_t i, auto load, auto store) {
    F total = load((const T*)a.parts[0] + begin + i);
    for (int64_t p = 1; p < a.num_parts; ++p) {
      total = total + load((const T*)a.parts[p] + begin + i);
    }
    store((T*)a.out + begin + i, total);
  });
}

static void sum_parts(Dtype dtype, const SumArgs& a, int64_t begin, int64_t end) {
  CHIPLET_DISPATCH(dtype, T, sum_elements<T>(a, begin, end))
}

// Plain C++, of which the compiler makes vectors: three types of one width each.
static void penalize(const PenalizeArgs& a, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    const float* logits = a.logits + row * a.stride;
    const uint8_t* is_in_prompt = a.is_in_prompt + row * a.prompt_stride;
    const int32_t* counts = a.counts + row * a.counts_stride;
    float* out = a.out + row * a.width;
    float repetition = a.repetition[row], presence = a.presence[row], frequency = a.frequency[row];
    for (int64_t i = 0; i < a.width; ++i) {
      float x = logits[i], repeated = x > 0 ? x / repetition : x * repetition;
      bool is_in_output = counts[i] > 0;
      x = is_in_output || is_in_prompt[i] ? repeated : x;
      out[i] = x - (is_in_output ? presence : 0) - frequency * (float)counts[i];
    }
  }
}

// A word's bits are spread over its tokens, without a branch.
static void mask_word(const float* logits, uint32_t bits, int64_t count, float* out) {
  for (int64_t bit = 0; bit < count; ++bit) {
    out[bit] = bits >> bit & 1 ? logits[bit] : -__builtin_inff();
  }
}

static void mask_tokens(const MaskArgs& a, int64_t begin, int64_t end) {
  constexpr int64_t kBits = 32;
  for (int64_t row = begin; row < end; ++row) {
    const float* logits = a.logits + row * a.stride;
    const uint32_t* mask = a.mask + row * a.mask_stride;
    float* out = a.out + row * a.width;
    int64_t i = 0;
    for (; i + kBits <= a.width; i += kBits) mask_word(logits + i, mask[i / kBits], kBits, out + i);
    if (i < a.width) mask_word(logits + i, mask[i / kBits], a.width - i, out + i);
  }
}
