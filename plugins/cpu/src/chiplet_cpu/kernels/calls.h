// Operations that take more than one loop over a kernel. Tensors come as addresses.
#pragma once

#include "table.h"

namespace calls {

// Writes the new keys and values of `num_tokens` tokens, then attends for `num_requests`. Lengths
// and pages are read here, so that a call may be repeated after they have changed. The fields
// `parts` of the attention are filled in.
void attention(AttentionArgs attention, const KvWriteArgs& write, int64_t num_tokens,
               int64_t num_requests);

}  // namespace calls
