// y = x W^T + b over packed weights. Included by isa.cpp.
//
// A panel holds kPanel output features. Its weights are widened to float32 a stretch of K at a
// time, into memory that stays in the first-level cache, and multiplied with up to kRows rows of x
// from there: the packed form is read from memory once for all these rows, and every coding shares
// one multiplication.

constexpr int kPanel = 16;
constexpr int kStretch = 256;  // a multiple of kGroup; 16 KiB as float32
constexpr int kGroup = 32;
constexpr int kRows = 240;
constexpr int V = kPanel / W;  // vectors across a panel
constexpr int kTile = W == 16 ? 12 : 6;  // rows of one pass, as many as registers hold

// Each `expand` writes [count, kPanel] float32 for features [begin, begin + count) of a panel.

template <class T>
static void expand_plain(const uint8_t* panel, int64_t begin, int count, float* out) {
  const T* from = (const T*)panel + begin * kPanel;
  for (int i = 0; i < count * kPanel; i += W) store(out + i, load(from + i));
}

// Per group: kPanel scales, then (if there are any) kPanel minima, float16; then for each feature 8
// bytes, byte j holding output j in its low and output j + 8 in its high half.
template <bool has_minima>
static void expand_int4(const uint8_t* panel, int64_t begin, int count, float* out) {
  constexpr int kHead = (has_minima ? 4 : 2) * kPanel;
  constexpr int kBytes = kHead + kGroup * kPanel / 2;
  for (int k = 0; k < count; k += kGroup) {
    const uint8_t* group = panel + (begin + k) / kGroup * kBytes;
    float scale[kPanel], minimum[kPanel];
    for (int i = 0; i < kPanel; i += W) {
      F s = load((const f16*)group + i);
      store(scale + i, s);
      store(minimum + i, has_minima ? load((const f16*)group + kPanel + i) : s * splat(-8.0f));
    }
    const uint8_t* bytes = group + kHead;
    for (int row = 0; row < kGroup; ++row, bytes += kPanel / 2, out += kPanel) {
      for (int j = 0; j < kPanel / 2; ++j) {
        out[j] = (float)(bytes[j] & 15) * scale[j] + minimum[j];
        out[j + 8] = (float)(bytes[j] >> 4) * scale[j + 8] + minimum[j + 8];
      }
    }
  }
}

// Per group: kPanel scales, float16; then for each feature kPanel signed bytes.
static void expand_int8(const uint8_t* panel, int64_t begin, int count, float* out) {
  constexpr int kHead = 2 * kPanel;
  constexpr int kBytes = kHead + kGroup * kPanel;
  for (int k = 0; k < count; k += kGroup) {
    const uint8_t* group = panel + (begin + k) / kGroup * kBytes;
    float scale[kPanel];
    for (int i = 0; i < kPanel; i += W) store(scale + i, load((const f16*)group + i));
    const int8_t* bytes = (const int8_t*)(group + kHead);
    for (int row = 0; row < kGroup; ++row, bytes += kPanel, out += kPanel) {
      for (int j = 0; j < kPanel; ++j) out[j] = (float)bytes[j] * scale[j];
    }
  }
}

// sums[R, kPanel] += x[R, count] * weights[count, kPanel].
template <int R>
static void multiply(const float* x, int64_t stride, const float* weights, int count,
                     float* sums) {
  constexpr int U = R == 1 ? 4 : R == 2 ? 2 : 1;  // chains that hide the latency of few rows
  F total[U][R][V];
  for (int u = 0; u < U; ++u) {
    for (int r = 0; r < R; ++r) {
      for (int v = 0; v < V; ++v) total[u][r][v] = zero();
    }
  }
  auto step = [&](int u, int k) {
    F column[V];
    for (int v = 0; v < V; ++v) column[v] = load(weights + k * kPanel + v * W);
    for (int r = 0; r < R; ++r) {
      F value = splat(x[r * stride + k]);
      for (int v = 0; v < V; ++v) total[u][r][v] = fma(value, column[v], total[u][r][v]);
    }
  };
  int k = 0;
  for (; k + U <= count; k += U) {
    for (int u = 0; u < U; ++u) step(u, k + u);
  }
  for (; k < count; ++k) step(0, k);
  for (int r = 0; r < R; ++r) {
    for (int v = 0; v < V; ++v) {
      F sum = total[0][r][v];
      for (int u = 1; u < U; ++u) sum = sum + total[u][r][v];
      float* at = sums + r * kPanel + v * W;
      store(at, load(at) + sum);
    }
  }
}

template <int R>
static void multiply_rest(int rows, const float* x, int64_t stride, const float* weights,
                          int count, float* sums) {
  if (rows == R) {
    multiply<R>(x, stride, weights, count, sums);
  } else if constexpr (R > 1) {
    multiply_rest<R - 1>(rows, x, stride, weights, count, sums);
  }
}

template <class T>
static void finish(const LinearArgs& a, int64_t row, int rows, int64_t column, const float* sums) {
  int64_t left = a.n - column;
  int count = left < kPanel ? (int)left : kPanel;
  for (int r = 0; r < rows; ++r) {
    T* out = (T*)a.out + (row + r) * a.n + column;
    const T* bias = (const T*)a.bias + column;
    each_vector(count, [&](int64_t i, auto load, auto store) {
      F sum = load(sums + r * kPanel + i);
      store(out + i, a.bias ? sum + load(bias + i) : sum);
    });
  }
}

static void expand(Coding coding, const uint8_t* panel, int64_t begin, int count, float* out) {
  switch (coding) {
    case Coding::float32: return expand_plain<float>(panel, begin, count, out);
    case Coding::bfloat16: return expand_plain<bf16>(panel, begin, count, out);
    case Coding::float16: return expand_plain<f16>(panel, begin, count, out);
    case Coding::int4: return expand_int4<false>(panel, begin, count, out);
    case Coding::int4_minima: return expand_int4<true>(panel, begin, count, out);
    case Coding::int8: return expand_int8(panel, begin, count, out);
  }
}

static void linear(Dtype dtype, const LinearArgs& a, int64_t begin, int64_t end) {
  alignas(64) float weights[kStretch * kPanel];
  alignas(64) float sums[kRows * kPanel];
  for (int64_t panel = begin; panel < end; ++panel) {
    const uint8_t* packed = (const uint8_t*)a.panels + panel * a.panel_bytes;
    for (int64_t row = 0; row < a.rows; row += kRows) {
      int rows = a.rows - row < kRows ? (int)(a.rows - row) : kRows;
      for (int i = 0; i < rows * kPanel; ++i) sums[i] = 0;
      for (int64_t k = 0; k < a.k; k += kStretch) {
        int count = a.k - k < kStretch ? (int)(a.k - k) : kStretch;
        expand(a.coding, packed, k, count, weights);
        const float* x = a.x + row * a.x_stride + k;
        int r = 0;
        for (; r + kTile <= rows; r += kTile) {
          multiply<kTile>(x + r * a.x_stride, a.x_stride, weights, count, sums + r * kPanel);
        }
        multiply_rest<kTile - 1>(rows - r, x + r * a.x_stride, a.x_stride, weights, count,
                                 sums + r * kPanel);
      }
      CHIPLET_DISPATCH(dtype, T, finish<T>(a, row, rows, panel * kPanel, sums))
    }
  }
}

template <class T>
static void widen_rows_of(const T* x, int64_t stride, int64_t width, float* out, int64_t begin,
                          int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    each_vector(width, [&](int64_t i, auto load, auto store) {
      store(out + row * width + i, load(x + row * stride + i));
    });
  }
}

static void widen_rows(Dtype dtype, const WidenArgs& a, int64_t begin, int64_t end) {
  CHIPLET_DISPATCH(dtype, T,
                   widen_rows_of<T>((const T*)a.x, a.stride, a.width, a.out, begin, end))
}
