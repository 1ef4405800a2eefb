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

struct Kernels {
  const char* name;
  void (*rms_norm)(Dtype, const NormArgs&, int64_t begin, int64_t end);
  void (*rotary)(Dtype, const RotaryArgs&, int64_t begin, int64_t end);
  void (*silu_mul)(Dtype, const SiluMulArgs&, int64_t begin, int64_t end);
  void (*sample)(const SampleArgs&, int64_t begin, int64_t end);
};

// The table in use. Chosen when the library is loaded: the best that the processor has.
const Kernels& kernels();
