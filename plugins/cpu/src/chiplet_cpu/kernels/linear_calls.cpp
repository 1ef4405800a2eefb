// Linear layers: which kernels take a product's two steps, and what memory lies between them.
#include "calls.h"
#include "pool.h"
#include "product.h"

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

// One product by itself.
void run(Product product) {
  product.place(pool::shared_memory(product.bytes()));
  if (int64_t tiles = product.num_tiles()) {
    constexpr int64_t kInputs = 8 << 10;  // what is worth waking a thread for
    int64_t grain = 1 + kInputs / (product.tile_rows() * product.inputs() + 1);
    pool::for_ranges(tiles, grain,
                     [&](int64_t begin, int64_t end) { product.prepare(begin, end); });
  }
  pool::for_ranges(product.num_panels(), product.panel_grain(),
                   [&](int64_t begin, int64_t end) { product.multiply(begin, end); });
}

}  // namespace

Product::Form Product::form_of(Dtype dtype, const LinearArgs& a, int64_t rows, bool is_rounded) {
  if (is_rounded) {
    if (a.coding == Coding::int8_channels) return Form::channels;
    return kernels().has_tiles && rows >= kSpanRows ? Form::spans : Form::groups;
  }
  bool is_bf16 = dtype == Dtype::bfloat16 && a.coding == Coding::bfloat16;
  if (is_bf16 && kernels().has_bf16_words) return Form::pairs;
  return dtype == Dtype::float32 ? Form::as_it_is : Form::widened;
}

Product::Product(Dtype dtype, const Rows& x, const LinearArgs& args, bool is_rounded)
    : dtype_(dtype),
      x_(x),
      a_(args),
      form_(form_of(dtype, args, x.rows, is_rounded)),
      tile_(kernels().code_rows) {
  a_.rows = x.rows;
  switch (form_) {
    case Form::as_it_is:
      a_.x = (const float*)x.data;
      a_.x_stride = x.stride;
      break;
    case Form::widened: a_.x_stride = a_.k; break;
    case Form::pairs: set_words(0, 2); break;
    case Form::spans: set_words(kSpan, 4); break;
    case Form::channels: set_words(0, 4); break;
    case Form::groups: {
      auto [group, zero] = grouping(a_.coding);
      groups_ = {x.data, x.stride, x.rows, a_.k, group, zero, nullptr, nullptr, nullptr};
      break;
    }
  }
}

// `span` 0: all inputs share a scale.
void Product::set_words(int64_t span, int per_word) {
  constexpr int64_t kWords = 16, kRows = 32;
  int64_t words = (a_.k + per_word - 1) / per_word, row_words = words;
  word_rows_ = x_.rows;
  bool is_tiled = kernels().has_tiles && x_.rows >= kTiledRows;
  if (is_tiled) {
    row_words = (words + kWords - 1) / kWords * kWords;
    word_rows_ = (x_.rows + kRows - 1) / kRows * kRows;
  }
  words_ = {x_.data, x_.stride, x_.rows, a_.k,    span ? span : words * per_word,
            words,   row_words, is_tiled, nullptr, nullptr,
            nullptr};
}

int64_t Product::bytes() const {
  switch (form_) {
    case Form::as_it_is: return 0;
    case Form::widened: return x_.rows * a_.k * (int64_t)sizeof(float);
    case Form::groups: {
      int64_t num_groups = x_.rows * (a_.k / groups_.group);
      return x_.rows * a_.k + 2 * num_groups * (int64_t)sizeof(float);
    }
    default: {
      int64_t scales = x_.rows * ((a_.k + words_.span - 1) / words_.span);
      return (word_rows_ * words_.row_words + 2 * scales) * (int64_t)sizeof(int32_t);
    }
  }
}

void Product::place(void* memory) {
  switch (form_) {
    case Form::as_it_is: break;
    case Form::widened: a_.x = (const float*)memory; break;
    case Form::groups:
      groups_.codes = (int32_t*)memory;
      groups_.scales = (float*)((char*)memory + x_.rows * a_.k);
      groups_.sums = groups_.scales + x_.rows * (a_.k / groups_.group);
      break;
    default:
      words_.x_words = (int32_t*)memory;
      words_.scales = (float*)(words_.x_words + word_rows_ * words_.row_words);
      words_.offsets = (int32_t*)words_.scales + x_.rows * ((a_.k + words_.span - 1) / words_.span);
  }
}

void Product::prepare(int64_t begin, int64_t end) const {
  const Kernels& table = kernels();
  switch (form_) {
    case Form::as_it_is: break;
    case Form::widened: {
      WidenArgs w{x_.data, (float*)a_.x, x_.stride, a_.k};
      int64_t last = end * tile_;
      table.widen_rows(dtype_, w, begin * tile_, last < x_.rows ? last : x_.rows);
      break;
    }
    case Form::pairs: table.pair_rows(words_, begin, end); break;
    case Form::groups: table.quantize_rows(dtype_, groups_, begin, end); break;
    case Form::spans:
    case Form::channels: table.quantize_tokens(dtype_, words_, begin, end); break;
  }
}

void Product::multiply(int64_t begin, int64_t end) const {
  const Kernels& table = kernels();
  switch (form_) {
    case Form::as_it_is:
    case Form::widened: table.linear(dtype_, a_, begin, end); break;
    case Form::pairs: table.bf16_linear(dtype_, a_, words_, begin, end); break;
    case Form::groups: table.int8_linear(dtype_, a_, groups_, begin, end); break;
    case Form::spans: table.int8_spans(dtype_, a_, words_, begin, end); break;
    case Form::channels: table.int8_channels(dtype_, a_, words_, begin, end); break;
  }
}

void linear(Dtype dtype, const Rows& x, const LinearArgs& a) { run(Product(dtype, x, a, false)); }

void int8_linear(Dtype dtype, const Rows& x, const LinearArgs& a) {
  run(Product(dtype, x, a, true));
}

void rows(Dtype dtype, const RowsArgs& a, int64_t count) {
  constexpr int64_t kInputs = 2 << 10;
  pool::for_ranges(count, 1 + kInputs / (a.k + 1), [&](int64_t begin, int64_t end) {
    kernels().panel_rows(dtype, a, begin, end);
  });
}

}  // namespace calls
