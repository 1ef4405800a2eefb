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

// How packed weights are coded; see linear.h, and linear/native.py, which packs them.
enum class Coding : int {
  float32 = 0,
  bfloat16 = 1,
  float16 = 2,
  int4 = 3,
  int4_minima = 4,
  int8 = 5
};

struct LinearArgs {
  const float* x;
  const void* panels;
  const void* bias;  // null without one; of the type that the kernel is called with, like out
  void* out;         // [rows, n]
  int64_t x_stride, rows, k, n, panel_bytes;
  Coding coding;
};

struct WidenArgs {
  const void* x;
  float* out;  // [rows, width]
  int64_t stride, width;
};

struct AttentionArgs {
  const void* q;  // [tokens, heads, head_dim]
  const void* kv;  // [pages, 2, num_kv_heads, words of a head]; see attention.h
  void* out;      // [tokens, heads, head_dim], contiguous
  float* parts;   // [parts, kAttentionRows, 2 + head_dim]: peak, total, weighted values
  const int32_t *query_starts, *kv_lengths, *page_table;
  int64_t q_row_stride, q_head_stride, table_stride;
  int64_t num_kv_heads, group, head_dim, page_size;
  int64_t window;  // 0: all
  float scale;
  Dtype dtype, kv_dtype;
};

constexpr int kAttentionRows = 96;

// Some query rows (token * group + head) of one request and key head, against some of its tokens.
// For `join_parts`, kv_end is how many parts there are, beginning with `part`.
struct AttentionItem {
  int64_t request, head, first_row;
  int num_rows;
  int part;  // -1: the only one, which writes the result
  int64_t kv_begin, kv_end;
};

struct KvWriteArgs {
  const void *k, *v;  // [tokens, num_kv_heads, head_dim]
  void* kv;
  const int32_t* kv_rows;
  int64_t k_row_stride, k_head_stride, v_row_stride, v_head_stride;
  int64_t num_kv_heads, head_dim, page_size;
  Dtype dtype, kv_dtype;
};

struct Kernels {
  const char* name;
  void (*rms_norm)(Dtype, const NormArgs&, int64_t begin, int64_t end);
  void (*rotary)(Dtype, const RotaryArgs&, int64_t begin, int64_t end);
  void (*silu_mul)(Dtype, const SiluMulArgs&, int64_t begin, int64_t end);
  void (*sample)(const SampleArgs&, int64_t begin, int64_t end);
  void (*linear)(Dtype, const LinearArgs&, int64_t begin, int64_t end);  // panels
  void (*widen_rows)(Dtype, const WidenArgs&, int64_t begin, int64_t end);
  void (*attend)(const AttentionArgs&, const AttentionItem*, int64_t begin, int64_t end);
  void (*join_parts)(const AttentionArgs&, const AttentionItem*, int64_t begin, int64_t end);
  void (*write_kv)(const KvWriteArgs&, int64_t begin, int64_t end);
};

// The table in use. Chosen when the library is loaded: the best that the processor has.
const Kernels& kernels();
