// Linear layers: first x in the form that a kernel wants, then panels shared among threads.
#include "calls.h"
#include "pool.h"

namespace calls {
namespace {

// Tiles hold 16 rows of 16 words, and two of them are read. Rounding a panel for them pays from some
// rows on; neither number was measured on hardware with tiles.
constexpr int64_t kTiledRows = 16, kSpanRows = 32;
constexpr int64_t kSpan = 32;  // inputs of x with a scale

// What a product of whole numbers needs to know of a coding; as in blocks.h.
struct Grouping {
  int group, zero;
};

Grouping grouping(Coding coding) {
  switch (coding) {
    case Coding::q4_0: return {32, 8};
    case Coding::q8_0: return {32, 128};
    case Coding::q6_k: return {16, 32};
    default: return {32, 0};
  }
}

template <class Function>
void for_panels(const LinearArgs& a, Function function) {
  // Even numbers, because some kernels take two panels at a time.
  int64_t num_panels = (a.n + kPanel - 1) / kPanel;
  int64_t grain = (pool::even_grain(num_panels) + 1) / 2 * 2;
  pool::for_ranges(num_panels, grain, function);
}

template <class Function>
void for_tiles(int64_t rows, int64_t k, Function function) {
  constexpr int64_t kInputs = 8 << 10;  // what is worth waking a thread for
  int64_t tile = kernels().code_rows, num_tiles = (rows + tile - 1) / tile;
  pool::for_ranges(num_tiles, 1 + kInputs / (tile * k + 1), function);
}

void blocks(Dtype dtype, const Rows& x, const LinearArgs& a) {
  auto [group, zero] = grouping(a.coding);
  int64_t num_groups = x.rows * (a.k / group);
  auto* codes = (char*)pool::shared_memory(x.rows * a.k + 2 * num_groups * sizeof(float));
  auto* scales = (float*)(codes + x.rows * a.k);
  QuantizeArgs q{x.data, x.stride,         x.rows, a.k, group, zero, (int32_t*)codes,
                 scales, scales + num_groups};
  for_tiles(x.rows, a.k, [&](int64_t begin, int64_t end) {
    kernels().quantize_rows(dtype, q, begin, end);
  });
  for_panels(a, [&](int64_t begin, int64_t end) {
    kernels().int8_linear(dtype, a, q, begin, end);
  });
}

// `span` 0: all inputs share a scale.
WordArgs words_of(const Rows& x, int64_t k, int64_t span, int per_word) {
  constexpr int64_t kWords = 16, kRows = 32;
  int64_t words = (k + per_word - 1) / per_word, row_words = words, rows = x.rows;
  bool is_tiled = kernels().has_tiles && x.rows >= kTiledRows;
  if (is_tiled) {
    row_words = (words + kWords - 1) / kWords * kWords;
    rows = (rows + kRows - 1) / kRows * kRows;
  }
  if (span == 0) span = words * per_word;
  int64_t scales = x.rows * ((k + span - 1) / span);
  auto* memory = (int32_t*)pool::shared_memory((rows * row_words + 2 * scales) * sizeof(int32_t));
  int32_t* after = memory + rows * row_words;
  return {x.data, x.stride,  x.rows,   k,      span,          words,
          row_words, is_tiled, memory, (float*)after, after + scales};
}

void spans(Dtype dtype, const Rows& x, const LinearArgs& a) {
  WordArgs w = words_of(x, a.k, kSpan, 4);
  for_tiles(x.rows, a.k, [&](int64_t begin, int64_t end) {
    kernels().quantize_tokens(dtype, w, begin, end);
  });
  for_panels(a, [&](int64_t begin, int64_t end) { kernels().int8_spans(dtype, a, w, begin, end); });
}

void channels(Dtype dtype, const Rows& x, const LinearArgs& a) {
  WordArgs w = words_of(x, a.k, 0, 4);
  for_tiles(x.rows, a.k, [&](int64_t begin, int64_t end) {
    kernels().quantize_tokens(dtype, w, begin, end);
  });
  for_panels(a, [&](int64_t begin, int64_t end) {
    kernels().int8_channels(dtype, a, w, begin, end);
  });
}

void pairs(const Rows& x, const LinearArgs& a) {
  WordArgs w = words_of(x, a.k, 0, 2);
  for_tiles(x.rows, a.k,
            [&](int64_t begin, int64_t end) { kernels().pair_rows(w, begin, end); });
  for_panels(a, [&](int64_t begin, int64_t end) {
    kernels().bf16_linear(Dtype::bfloat16, a, w, begin, end);
  });
}

}  // namespace

void linear(Dtype dtype, const Rows& x, LinearArgs a) {
  bool is_bf16 = dtype == Dtype::bfloat16 && a.coding == Coding::bfloat16;
  if (is_bf16 && kernels().has_bf16_words) return pairs(x, a);
  a.x = (const float*)x.data;
  a.x_stride = x.stride;
  if (dtype != Dtype::float32) {
    auto* wide = (float*)pool::shared_memory(x.rows * a.k * sizeof(float));
    WidenArgs w{x.data, wide, x.stride, a.k};
    for_tiles(x.rows, a.k, [&](int64_t begin, int64_t end) {
      int64_t last = end * kernels().code_rows;
      kernels().widen_rows(dtype, w, begin * kernels().code_rows, last < x.rows ? last : x.rows);
    });
    a.x = wide;
    a.x_stride = a.k;
  }
  for_panels(a, [&](int64_t begin, int64_t end) { kernels().linear(dtype, a, begin, end); });
}

void int8_linear(Dtype dtype, const Rows& x, const LinearArgs& a) {
  if (a.coding == Coding::int8_channels) return channels(dtype, x, a);
  bool is_tiled = kernels().has_tiles && x.rows >= kSpanRows;
  is_tiled ? spans(dtype, x, a) : blocks(dtype, x, a);
}

void rows(Dtype dtype, const RowsArgs& a, int64_t count) {
  constexpr int64_t kInputs = 2 << 10;
  pool::for_ranges(count, 1 + kInputs / (a.k + 1), [&](int64_t begin, int64_t end) {
    kernels().panel_rows(dtype, a, begin, end);
  });
}

}  // namespace calls
