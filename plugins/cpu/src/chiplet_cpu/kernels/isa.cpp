// All kernels, compiled once for each instruction set: CHIPLET_ISA names the namespace and the
// table, the compiler's flags say which instructions may be used.
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "pool.h"
#include "table.h"

#if defined(__AMX_INT8__) || defined(CHIPLET_TILES_MODEL)
#define CHIPLET_TILES
#endif

#define CHIPLET_STRING_OF(x) #x
#define CHIPLET_STRING(x) CHIPLET_STRING_OF(x)

namespace CHIPLET_ISA {

#include "vec.h"

#include "blocks.h"
#include "elementwise.h"
#include "linear.h"
#include "sampling.h"

#include "attention_words.h"
#include "kv_pages.h"  // with the conversions of blocks.h

#include "attention.h"

#include "rounding.h"
#include "int8_linear.h"  // after linear.h, whose last step it shares
#include "span_linear.h"
#if defined(CHIPLET_TILES)
#include "tiles.h"
#endif
#include "word_linear.h"

extern const Kernels table;
const Kernels table = {
    CHIPLET_STRING(CHIPLET_ISA), kCodeRows, kHasBf16Words, kHasTiles, rms_norm, rotary, silu_mul, sample, linear,
    widen_rows, panel_rows, quantize_rows, int8_linear, pair_rows, quantize_tokens, bf16_linear, int8_channels, int8_spans,
    attend, join_parts, penalize, mask_tokens, argmax, write_kv, sum_parts,
};

}  // namespace CHIPLET_ISA
