// Number types of tensors, and what every kernel file needs.
#pragma once

#include <cstdint>

struct bf16 {
  uint16_t bits;
};
struct f16 {
  uint16_t bits;
};

// As Python passes them; see native.py.
enum class Dtype : int { float32 = 0, bfloat16 = 1, float16 = 2 };

// Keys and values in eight bits each; kv_pages.h has their layout.
enum class KvCoding : int { none = 0, int8 = 1, fp8 = 2 };

// Bytes of a token's coded key, or value, of one head.
inline int64_t row_width(KvCoding coding, int64_t head_dim) {
  return head_dim + (coding == KvCoding::int8 ? 4 : 0);
}

inline int64_t dtype_bytes(Dtype dtype) { return dtype == Dtype::float32 ? 4 : 2; }

// Calls body with a null pointer of the element type that stands for a dtype.
#define CHIPLET_DISPATCH(dtype, T, ...)                  \
  switch (dtype) {                                       \
    case Dtype::float32: { using T = float; __VA_ARGS__; break; } \
    case Dtype::bfloat16: { using T = bf16; __VA_ARGS__; break; } \
    case Dtype::float16: { using T = f16; __VA_ARGS__; break; }   \
  }
