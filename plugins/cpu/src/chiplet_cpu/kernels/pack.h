// Panels from GGUF's blocks.
#pragma once

#include "table.h"

namespace pack {

// Bytes of a panel of k inputs.
int64_t panel_bytes(Coding coding, int64_t k);

// Panels [begin, end) of blocks [n, k / inputs of a block]; outputs beyond n are zero.
void panels(Coding coding, const uint8_t* blocks, int64_t n, int64_t k, uint8_t* out,
            int64_t begin, int64_t end);

}  // namespace pack
