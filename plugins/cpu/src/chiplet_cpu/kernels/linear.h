// y = x W^T + b over packed weights, x as it is. Included by isa.cpp.
//
// A panel holds kPanel output features. Its weights are widened to float32 a stretch of K at a
// time, into memory that stays in the first-level cache, and multiplied with up to kRows rows of x
// from there: the packed form is read from memory once for all these rows, and every coding shares
// one multiplication.

constexpr int kStretch = 256;  // a multiple of every block; 16 KiB as float32
constexpr int kRows = 240;
constexpr int kTile = W == 16 ? 12 : 6;  // rows of one pass, as many as registers hold

// Each `expand` writes [count, kPanel] float32 for features [begin, begin + count) of a panel.

template <class T>
static void expand_plain(const uint8_t* panel, int64_t begin, int count, float* out) {
  const T* from = (const T*)panel + begin * kPanel;
  for (int i = 0; i < count * kPanel; i += W) store(out + i, load(from + i));
}

// Pairs of neighbouring inputs, as word_linear.h wants them.
static void expand_pairs(const uint8_t* panel, int64_t begin, int count, float* out) {
  const uint8_t* from = panel + begin * kPanel * 2;
  for (int k = 0; k < count; k += 2, from += kQuad) {
    for (int v = 0; v < V; ++v) {
      I words = load_bytes(from + v * 4 * W);
      store(out + k * kPanel + v * W, low_bf16(words));
      store(out + (k + 1) * kPanel + v * W, high_bf16(words));
    }
  }
}

template <class B, int j = 0>
static inline void expand_quads(const uint8_t* block, int g, int v, F scale, F minimum,
                                float* out) {
  if constexpr (j < B::kGroup / 4) {
    I codes = B::template codes<j>(block, g, v);
    store(out + (4 * j + 0) * kPanel, fma(byte_of<0>(codes), scale, minimum));
    store(out + (4 * j + 1) * kPanel, fma(byte_of<1>(codes), scale, minimum));
    store(out + (4 * j + 2) * kPanel, fma(byte_of<2>(codes), scale, minimum));
    store(out + (4 * j + 3) * kPanel, fma(byte_of<3>(codes), scale, minimum));
    expand_quads<B, j + 1>(block, g, v, scale, minimum, out);
  }
}

template <class B>
static void expand_blocks(const uint8_t* panel, int64_t begin, int count, float* out) {
  const uint8_t* block = panel + begin / B::kBlock * B::kBytes;
  for (int k = 0; k < count; k += B::kBlock, block += B::kBytes) {
    for (int g = 0; g < B::kBlock / B::kGroup; ++g) {
      for (int v = 0; v < V; ++v) {
        F scale = B::scale(block, g, v);
        F minimum = B::kHasMinima ? B::minimum(block, g, v) : scale * splat(-(float)B::kZero);
        expand_quads<B>(block, g, v, scale, minimum, out + (k + g * B::kGroup) * kPanel + v * W);
      }
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
    const T* residual = (const T*)a.residual + (row + r) * a.n + column;
    each_vector(count, [&](int64_t i, auto load, auto store) {
      F sum = load(sums + r * kPanel + i);
      store(out + i, a.bias ? sum + load(bias + i) : sum);
      // Of the product as it would be stored, so that a sum apart gives the same bits.
      if (a.residual) store(out + i, load(out + i) + load(residual + i));
    });
  }
}

// silu(gate) * up, of panels that are full.
template <class T>
static void finish_gated(const LinearArgs& a, int64_t row, int rows, int64_t column,
                         const float* gates, const float* ups) {
  F one = splat(1.0f);
  const T* bias = (const T*)a.bias + column;
  for (int r = 0; r < rows; ++r) {
    T* out = (T*)a.out + (row + r) * a.n + column;
    for (int i = 0; i < kPanel; i += W) {
      F gate = load(gates + r * kPanel + i), up = load(ups + r * kPanel + i);
      if (a.bias) {
        gate = gate + load(bias + i);
        up = up + load(bias + a.n + i);
      }
      store(out + i, gate / (one + exp(zero() - gate)) * up);
    }
  }
}

static void expand(Coding coding, const uint8_t* panel, int64_t begin, int count, float* out) {
  switch (coding) {
    case Coding::float32: return expand_plain<float>(panel, begin, count, out);
    case Coding::bfloat16: return expand_pairs(panel, begin, count, out);
    case Coding::float16: return expand_plain<f16>(panel, begin, count, out);
    default: break;
  }
  with_blocks(coding, [&](auto blocks) {
    expand_blocks<decltype(blocks)>(panel, begin, count, out);
  });
}

// sums[rows, kPanel] of one panel.
static void sum_panel(const LinearArgs& a, int64_t panel, int64_t row, int rows, float* sums) {
  alignas(64) float weights[kStretch * kPanel];
  const uint8_t* packed = (const uint8_t*)a.panels + panel * a.panel_bytes;
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
}

static void linear(Dtype dtype, const LinearArgs& a, int64_t begin, int64_t end) {
  alignas(64) float sums[2][kRows * kPanel];
  for (int64_t panel = begin; panel < end; ++panel) {
    for (int64_t row = 0; row < a.rows; row += kRows) {
      int rows = a.rows - row < kRows ? (int)(a.rows - row) : kRows;
      int64_t column = panel * kPanel;
      sum_panel(a, panel, row, rows, sums[0]);
      if (a.is_gated) {
        sum_panel(a, panel + a.n / kPanel, row, rows, sums[1]);
        CHIPLET_DISPATCH(dtype, T, finish_gated<T>(a, row, rows, column, sums[0], sums[1]))
      } else {
        CHIPLET_DISPATCH(dtype, T, finish<T>(a, row, rows, column, sums[0]))
      }
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

// One output of a panel of int8: words of four inputs, 128 added, and scales after them.
template <class T>
static void channel_row(const uint8_t* panel, int64_t output, int64_t k, T* out) {
  F scale = splat(((const float*)(panel + (k + 3) / 4 * kQuad))[output]);
  alignas(64) float values[W];
  each_vector(k, [&](int64_t i, auto, auto store) {
    for (int j = 0; j < W; ++j) {
      int64_t at = i + j < k ? i + j : i;
      values[j] = (float)(panel[at / 4 * kQuad + output * 4 + at % 4] - 128);
    }
    store(out + i, load(values) * scale);
  });
}

// A panel is widened for one of its outputs: a stretch takes about a microsecond.
template <class T>
static void panel_rows_of(const RowsArgs& a, int64_t begin, int64_t end) {
  alignas(64) float weights[kStretch * kPanel];
  alignas(64) float values[kStretch];
  for (int64_t row = begin; row < end; ++row) {
    int64_t output = a.ids[row];
    const uint8_t* panel = (const uint8_t*)a.panels + output / kPanel * a.panel_bytes;
    T* out = (T*)a.out + row * a.k;
    if (a.coding == Coding::int8_channels) {
      channel_row(panel, output % kPanel, a.k, out);
      continue;
    }
    for (int64_t k = 0; k < a.k; k += kStretch) {
      int count = a.k - k < kStretch ? (int)(a.k - k) : kStretch;
      expand(a.coding, panel, k, count, weights);
      for (int i = 0; i < count; ++i) values[i] = weights[i * kPanel + output % kPanel];
      each_vector(count, [&](int64_t i, auto load, auto store) {
        store(out + k + i, load(values + i));
      });
    }
  }
}

static void panel_rows(Dtype dtype, const RowsArgs& a, int64_t begin, int64_t end) {
  CHIPLET_DISPATCH(dtype, T, panel_rows_of<T>(a, begin, end))
}
