// A linear layer in two steps: x in the form that a kernel wants, then panels. Both are shared out
// among threads by whoever calls, alone or in a chain with others.
#pragma once

#include "calls.h"
#include "pool.h"

namespace calls {

class Product {
 public:
  // `args` without x, which need not be there before the first step. With `is_rounded` x is rounded
  // to eight bits.
  Product(Dtype dtype, const Rows& x, const LinearArgs& args, bool is_rounded);

  // Memory that the first step writes and the second reads.
  int64_t bytes() const;
  void place(void* memory);

  // The first step is done in tiles of rows; there is none where x is taken as it is.
  int64_t num_tiles() const { return form_ == Form::as_it_is ? 0 : (x_.rows + tile_ - 1) / tile_; }
  int64_t tile_rows() const { return tile_; }
  int64_t inputs() const { return a_.k; }
  void prepare(int64_t begin, int64_t end) const;

  int64_t num_panels() const { return (a_.n + kPanel - 1) / kPanel; }
  // Even, because some kernels take two panels at a time.
  int64_t panel_grain() const { return (pool::even_grain(num_panels()) + 1) / 2 * 2; }
  void multiply(int64_t begin, int64_t end) const;

 private:
  enum class Form { as_it_is, widened, pairs, groups, spans, channels };
  static Form form_of(Dtype dtype, const LinearArgs& args, int64_t rows, bool is_rounded);
  void set_words(int64_t span, int per_word);

  Dtype dtype_;
  Rows x_;
  LinearArgs a_;
  Form form_;
  int64_t tile_;
  QuantizeArgs groups_{};
  WordArgs words_{};
  int64_t word_rows_ = 0;
};

}  // namespace calls
