// The kernels of one instruction set. None of them starts threads: they work on a range of rows.
#pragma once

#include "types.h"

// Strides count elements, between rows; rows themselves are contiguous.
struct NormArgs {
  const void *x, *residual, *weight;
  void *out, *total;  // residual and total are null for a plain norm
  int64_t x_stride, residual_stride, width;
  float eps;
};

struct RotaryArgs {
  const void* x;
  void* out;  // [rows, num_heads, head_dim]
  const int32_t* positions;
  const float* cos_sin;  // [positions, head_dim]: cosines, then sines
  int64_t row_stride, head_stride, num_heads, head_dim;
};

struct SiluMulArgs {
  const void* gate_up;
  void* out;
  int64_t stride, width;
};

struct SampleArgs {
  const float* logits;  // [rows, vocab]
  const float *temperature, *top_p, *min_p, *uniform;
  const int32_t* top_k;
  int32_t* out;
  int64_t stride, vocab;
  bool has_filters;
};

struct PenalizeArgs {
  const float* logits;  // [rows, width]
  const uint8_t* is_in_prompt;
  const int32_t* counts;
  const float *repetition, *presence, *frequency;
  float* out;  // [rows, width], contiguous
  int64_t stride, prompt_stride, counts_stride, width;
};

struct MaskArgs {
  const float* logits;    // [rows, width]
  const uint32_t* mask;   // [rows, ceil(width / 32)]
  float* out;             // [rows, width], contiguous
  int64_t stride, mask_stride, width;
};

struct SumArgs {
  const void* const* parts;  // [num_parts]
  int64_t num_parts;
  void* out;
};

struct ArgmaxArgs {
  const void* x;
  int32_t* out;  // [rows]
  int64_t stride, width;
};

// How packed weights are coded; blocks.h and linear.h have the layouts, linear/native.py packs.
enum class Coding : int {
  float32 = 0,
  bfloat16 = 1,
  float16 = 2,
  q4_0 = 3,
  q4_1 = 4,
  q8_0 = 5,
  q4_k = 6,
  q5_k = 7,
  q6_k = 8,
  int8_channels = 9,
  int4_32 = 10,
  int4_64 = 11,
  int4_128 = 12
};

constexpr int kPanel = 16;  // output features that are packed together

struct LinearArgs {
  const float* x;  // null where QuantizeArgs has it
  const void* panels;
  const void* bias;  // null without one; of the type that the kernel is called with, like out
  void* out;         // [rows, n]
  int64_t x_stride, rows, k, n, panel_bytes;
  Coding coding;
  // There are 2 n outputs, whole panels of gates and then of what they are for; what is written is
  // silu(gate) * up.
  bool is_gated = false;
  const void* residual = nullptr;  // [rows, n], added to what would be written; null without one
};

// Rows of packed weights, for embeddings.
struct RowsArgs {
  const int32_t* ids;
  const void* panels;
  void* out;  // [rows, k]
  int64_t k, panel_bytes;
  Coding coding;
};

struct WidenArgs {
  const void* x;
  float* out;  // [rows, width]
  int64_t stride, width;
};

// Rows rounded to eight bits, in tiles of `Kernels::code_rows`; int8_linear.h has the layouts.
struct QuantizeArgs {
  const void* x;
  int64_t stride, rows, k;
  int group;       // inputs that share a scale
  int zero;        // what is subtracted from weights' codes; 0 where they have minima
  int32_t* codes;  // [rows, k] bytes
  float* scales;   // [rows, k / group]
  float* sums;     // [rows, k / group]
};

// Rows as words of 32 bits, in tiles; see word_linear.h. Of int8, `span` inputs of a row share a scale,
// and a row has spans = ceil(k / span) of them.
struct WordArgs {
  const void* x;
  int64_t stride, rows, k, span;
  int64_t words;      // of a panel's output
  int64_t row_words;  // of a row of x: as many, or more where tile_linear.h reads them
  bool is_tiled;      // for tile_linear.h: rows stand one after another
  int32_t* x_words;   // [rows, row_words]
  float* scales;      // [rows, spans], of int8
  int32_t* offsets;   // [rows, spans], of int8: what a sum is too large by, negated
};

struct AttentionArgs {
  const void* q;  // [tokens, heads, head_dim]
  const void* kv;  // [pages, 2, num_kv_heads, words of a head]; see attention.h
  void* out;      // [tokens, heads, head_dim], contiguous
  float* parts;   // [rows of parts, 2 + head_dim]: peak, total, weighted values
  const float* sinks;  // [heads], or null
  const int32_t *query_starts, *kv_lengths, *page_table;
  const uint32_t* tree_bits;  // [tokens, 2]: new tokens that a token sees, 0 outside trees; or null
  int64_t q_row_stride, q_head_stride, table_stride;
  int64_t num_kv_heads, group, head_dim, page_size;
  int64_t window;  // 0: all
  float scale, softcap;  // softcap 0: none
  Dtype dtype, kv_dtype;
  KvCoding coding;
};

constexpr int kAttentionRows = 96;

// The new tokens of its request that a token sees, as bits; 0 if they are no tree.
inline uint64_t tree_of(const AttentionArgs& a, int64_t token) {
  return a.tree_bits ? a.tree_bits[2 * token] | (uint64_t)a.tree_bits[2 * token + 1] << 32 : 0;
}

// Some query rows of one key head, against some tokens: rows (token * group + head) of a request, or
// of several with one token each (member * group + head), all of whose rows see all the tokens.
struct AttentionItem {
  int64_t request, head, first_row, num_rows;
  int64_t kv_begin, kv_end;
  int64_t part;            // its first row among those of parts; -1: it writes the result itself
  const int32_t* members;  // requests whose rows these are; null: of `request` alone
  bool is_first;           // of the parts of its rows: the one that counts sinks
};

// Some rows of parts, one run of them after another.
struct AttentionParts {
  int64_t first, count, stride;
};

// Rows whose parts are joined: some of their own, some shared with others.
struct AttentionJoin {
  AttentionItem rows;
  AttentionParts own, shared;
};

struct KvWriteArgs {
  const void *k, *v;  // [tokens, num_kv_heads, head_dim]
  void* kv;
  const int32_t* kv_rows;
  int64_t k_row_stride, k_head_stride, v_row_stride, v_head_stride;
  int64_t num_kv_heads, head_dim, page_size;
  Dtype dtype, kv_dtype;
  KvCoding coding;
};

struct Kernels {
  const char* name;
  int code_rows;        // of a tile
  bool has_bf16_words;  // bf16_linear may be called
  bool has_tiles;       // rows for words may be tiled, and int8_spans called
  void (*rms_norm)(Dtype, const NormArgs&, int64_t begin, int64_t end);
  void (*rotary)(Dtype, const RotaryArgs&, int64_t begin, int64_t end);
  void (*silu_mul)(Dtype, const SiluMulArgs&, int64_t begin, int64_t end);
  void (*sample)(const SampleArgs&, int64_t begin, int64_t end);
  void (*linear)(Dtype, const LinearArgs&, int64_t begin, int64_t end);  // panels
  void (*widen_rows)(Dtype, const WidenArgs&, int64_t begin, int64_t end);
  void (*panel_rows)(Dtype, const RowsArgs&, int64_t begin, int64_t end);
  void (*quantize_rows)(Dtype, const QuantizeArgs&, int64_t begin, int64_t end);  // tiles
  void (*int8_linear)(Dtype, const LinearArgs&, const QuantizeArgs&, int64_t begin,
                      int64_t end);  // panels
  void (*pair_rows)(const WordArgs&, int64_t begin, int64_t end);                // tiles
  void (*quantize_tokens)(Dtype, const WordArgs&, int64_t begin, int64_t end);  // tiles
  void (*bf16_linear)(Dtype, const LinearArgs&, const WordArgs&, int64_t begin,
                      int64_t end);  // panels
  void (*int8_channels)(Dtype, const LinearArgs&, const WordArgs&, int64_t begin,
                        int64_t end);  // panels
  void (*int8_spans)(Dtype, const LinearArgs&, const WordArgs&, int64_t begin,
                     int64_t end);  // panels
  void (*attend)(const AttentionArgs&, const AttentionItem*, int64_t begin, int64_t end);
  void (*join_parts)(const AttentionArgs&, const AttentionJoin*, int64_t begin, int64_t end);
  void (*penalize)(const PenalizeArgs&, int64_t begin, int64_t end);
  void (*mask_tokens)(const MaskArgs&, int64_t begin, int64_t end);
  void (*argmax)(Dtype, const ArgmaxArgs&, int64_t begin, int64_t end);
  void (*write_kv)(const KvWriteArgs&, int64_t begin, int64_t end);
  void (*sum_parts)(Dtype, const SumArgs&, int64_t begin, int64_t end);  // elements
};

// The table in use. Chosen when the library is loaded: the best that the processor has.
const Kernels& kernels();
