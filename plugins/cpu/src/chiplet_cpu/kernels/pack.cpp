// Panels from GGUF's blocks: the same numbers in the order of blocks.h.
//
// Source of the blocks: ggml-common.h and ggml-quants.c of the ggml project.
#include "pack.h"

#include <cstring>

namespace pack {
namespace {

constexpr int kQuad = 4 * kPanel;

// Bytes [from, from + 2) of an output's block are its number `row` of the heads.
void put_half(const uint8_t* from, uint8_t* block, int row, int output) {
  std::memcpy(block + (row * kPanel + output) * 2, from, 2);
}

// 32 codes of four bits, as they stand in the order of inputs, into low and high halves of quads.
void put_nibbles(const uint8_t* codes, uint8_t* quads, int output) {
  for (int i = 0; i < 16; ++i) {
    quads[i / 4 * kQuad + output * 4 + i % 4] = (codes[i] & 15) | (codes[i + 16] & 15) << 4;
  }
}

// Blocks whose 16 bytes of codes hold inputs i and i + 16 in the halves of byte i, as quads do.
void put_int4(const uint8_t* from, int num_halves, uint8_t* block, int output) {
  for (int row = 0; row < num_halves; ++row) put_half(from + 2 * row, block, row, output);
  uint8_t* quads = block + num_halves * 2 * kPanel;
  for (int j = 0; j < 4; ++j) {
    std::memcpy(quads + j * kQuad + output * 4, from + 2 * num_halves + 4 * j, 4);
  }
}

void put_q8_0(const uint8_t* from, uint8_t* block, int output) {
  put_half(from, block, 0, output);
  uint8_t* quads = block + 2 * kPanel;
  for (int i = 0; i < 32; ++i) {
    quads[i / 4 * kQuad + output * 4 + i % 4] = from[2 + i] ^ 0x80;
  }
}

// Q4_K and Q5_K: d, dmin, twelve bytes of scales and minima, high bits (of Q5_K), low halves.
void put_k(const uint8_t* from, bool has_fifth, uint8_t* block, int output) {
  put_half(from, block, 0, output);
  put_half(from + 2, block, 1, output);
  const uint8_t *six = from + 4, *high = from + 16, *low = from + (has_fifth ? 48 : 16);
  uint8_t *scales = block + 4 * kPanel, *minima = scales + 8 * kPanel;
  uint8_t* groups = minima + 8 * kPanel;
  int group_bytes = (has_fifth ? 5 : 4) * kQuad;
  for (int g = 0; g < 8; ++g) {
    int scale = six[g] & 63, minimum = six[g + 4] & 63;
    if (g >= 4) {
      scale = (six[g + 4] & 15) | six[g - 4] >> 6 << 4;
      minimum = six[g + 4] >> 4 | six[g] >> 6 << 4;
    }
    scales[g * kPanel + output] = scale;
    minima[g * kPanel + output] = minimum;
    uint8_t codes[32];
    for (int i = 0; i < 32; ++i) codes[i] = low[g / 2 * 32 + i] >> (g % 2 * 4) & 15;
    uint8_t* group = groups + g * group_bytes;
    put_nibbles(codes, group, output);
    for (int i = 0; has_fifth && i < 32; ++i) {
      uint8_t bit = high[i] >> g & 1;
      group[4 * kQuad + output * 4 + i % 4] |= bit << (i / 4);
    }
  }
}

// 128 bytes of low halves, 64 of pairs of high bits, 16 scales, d.
void put_q6_k(const uint8_t* from, uint8_t* block, int output) {
  put_half(from + 208, block, 0, output);
  uint8_t *scales = block + 2 * kPanel, *pairs = scales + 16 * kPanel;
  for (int g = 0; g < 16; ++g) scales[g * kPanel + output] = from[192 + g];
  for (int p = 0; p < 8; ++p) {
    // Inputs 32 p to 32 p + 31: half p / 4 of the block, quarter p % 4 of that.
    const uint8_t* low = from + p / 4 * 64 + p % 2 * 32;
    const uint8_t* high = from + 128 + p / 4 * 32;
    uint8_t* pair = pairs + p * 6 * kQuad;
    uint8_t codes[32];
    for (int i = 0; i < 32; ++i) {
      codes[i] = low[i] >> (p % 4 / 2 * 4) & 15;
      uint8_t top = high[i] >> (p % 4 * 2) & 3;
      pair[(4 + i / 16) * kQuad + output * 4 + i % 4] |= top << (i % 16 / 4 * 2);
    }
    put_nibbles(codes, pair, output);
  }
}

struct Sizes {
  int inputs, bytes, panel_bytes;  // of a block; of a block of a panel
};

Sizes sizes(Coding coding) {
  switch (coding) {
    case Coding::q4_0: return {32, 18, 288};
    case Coding::q4_1: return {32, 20, 320};
    case Coding::q8_0: return {32, 34, 544};
    case Coding::q4_k: return {256, 144, 2368};
    case Coding::q5_k: return {256, 176, 2880};
    case Coding::q6_k: return {256, 210, 3360};
    default: return {1, 0, 0};
  }
}

void put(Coding coding, const uint8_t* from, uint8_t* block, int output) {
  switch (coding) {
    case Coding::q4_0: return put_int4(from, 1, block, output);
    case Coding::q4_1: return put_int4(from, 2, block, output);
    case Coding::q8_0: return put_q8_0(from, block, output);
    case Coding::q4_k: return put_k(from, false, block, output);
    case Coding::q5_k: return put_k(from, true, block, output);
    case Coding::q6_k: return put_q6_k(from, block, output);
    default: return;
  }
}

}  // namespace

int64_t panel_bytes(Coding coding, int64_t k) {
  Sizes size = sizes(coding);
  return k / size.inputs * size.panel_bytes;
}

void panels(Coding coding, const uint8_t* blocks, int64_t n, int64_t k, uint8_t* out,
            int64_t begin, int64_t end) {
  Sizes size = sizes(coding);
  int64_t num_blocks = k / size.inputs;
  std::memset(out + begin * num_blocks * size.panel_bytes, 0,
              (end - begin) * num_blocks * size.panel_bytes);
  for (int64_t panel = begin; panel < end; ++panel) {
    for (int output = 0; output < kPanel && panel * kPanel + output < n; ++output) {
      const uint8_t* from = blocks + (panel * kPanel + output) * num_blocks * size.bytes;
      uint8_t* to = out + panel * num_blocks * size.panel_bytes;
      for (int64_t b = 0; b < num_blocks; ++b) {
        put(coding, from + b * size.bytes, to + b * size.panel_bytes, output);
      }
    }
  }
}

}  // namespace pack
