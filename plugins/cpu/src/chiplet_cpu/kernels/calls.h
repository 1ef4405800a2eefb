// Operations that take more than one loop over a kernel. Tensors come as addresses.
#pragma once

#include "table.h"

namespace calls {

// Writes the new keys and values of `num_tokens` tokens, then attends for `num_requests`. Lengths
// and pages are read here, so that a call may be repeated after they have changed. The fields
// `parts` of the attention are filled in.
void attention(AttentionArgs attention, const KvWriteArgs& write, int64_t num_tokens,
               int64_t num_requests);

// Rows of activations, of the type that an operation is called with.
struct Rows {
  const void* data;
  int64_t stride, rows;
};

// y = x W^T + b, where `x` and `x_stride` of the arguments are filled in: x as it is, and x rounded
// to eight bits.
void linear(Dtype dtype, const Rows& x, const LinearArgs& args);
void int8_linear(Dtype dtype, const Rows& x, const LinearArgs& args);

// A linear layer of a stretch; `is_rounded` as above.
struct StretchProduct {
  bool is_rounded;
  Coding coding;
  const void *panels, *bias;
  int64_t panel_bytes, k, n;
};

// What lies between two attentions, as chiplet.api.StretchRequest has it.
struct StretchArgs {
  StretchProduct out, gate_up, down, following;
  const void *norm, *following_norm;
  float eps;
};

// `total` and `following` are written; `following` is null where nothing follows.
void stretch(Dtype dtype, const StretchArgs& args, const Rows& attended, const void* residual,
             void* total, void* following);

// `count` rows of packed weights.
void rows(Dtype dtype, const RowsArgs& args, int64_t count);

}  // namespace calls
