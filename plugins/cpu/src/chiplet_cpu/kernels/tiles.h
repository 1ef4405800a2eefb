// Tile registers: eight of 16 rows of 64 bytes, and their products. Included by isa.cpp where CHIPLET_TILES
// is defined.
//
// Source: Intel 64 and IA-32 Architectures Software Developer's Manual, volume 2, TDPBSUD and TDPBF16PS.
// A product adds to a tile of 16 x 16 sums the rows of one tile, four bytes or two bfloat16 at a time,
// times words of the same number in another. With CHIPLET_TILES_MODEL the same is done in plain code, so that
// what is built upon it can be tested on any processor.
//
// Tiles 0 to 3 have sums. Tiles 4 and 5 have rows of x and 6 and 7 have weights, of as many words as
// `begin` says, 16 at most.

constexpr int kRowsOfTile = 16, kTileBytes = 64;

#if defined(CHIPLET_TILES_MODEL)

struct Tiles {
  using Tile = uint8_t[kRowsOfTile][kTileBytes];
  static Tile& tile(int t) {
    static thread_local Tile all[8];
    return all[t];
  }
  template <class T>
  static T& element(int t, int row, int i) {
    return ((T*)tile(t)[row])[i];
  }

  static int& words() {
    static thread_local int count;
    return count;
  }
  static void begin(int count) { words() = count; }
  static void end() {}
  template <int t>
  static void clear() {
    __builtin_memset(tile(t), 0, sizeof(Tile));
  }
  template <int t>
  static void read(const void* at, int64_t stride) {
    bool is_x = t < 6;
    __builtin_memset(tile(t), 0, sizeof(Tile));
    for (int i = 0; i < (is_x ? kRowsOfTile : words()); ++i) {
      __builtin_memcpy(tile(t)[i], (const char*)at + i * stride, is_x ? 4 * words() : kTileBytes);
    }
  }
  template <int t>
  static void write(void* at) {
    __builtin_memcpy(at, tile(t), sizeof(Tile));
  }
  // Signed bytes of `x` times unsigned ones of `weights`.
  template <int sums, int x, int weights>
  static void dot_bytes() {
    for (int i = 0; i < 16 * 16 * 64; ++i) {
      int row = i / 1024, output = i / 64 % 16, k = i % 64;
      element<int32_t>(sums, row, output) += element<int8_t>(x, row, k) *
                                             element<uint8_t>(weights, k / 4, output * 4 + k % 4);
    }
  }
  template <int sums, int x, int weights>
  static void dot_bf16() {
    for (int i = 0; i < 16 * 16 * 32; ++i) {
      int row = i / 512, output = i / 32 % 16, k = i % 32;
      element<float>(sums, row, output) += widen(element<bf16>(x, row, k)) *
                                           widen(element<bf16>(weights, k / 2, output * 2 + k % 2));
    }
  }
};

#else

struct Tiles {
  struct Config {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
  };
  static_assert(sizeof(Config) == 64);

  static void begin(int words) {
    alignas(64) Config config;
    config.row_bytes[4] = config.row_bytes[5] = 4 * words;
    config.rows[6] = config.rows[7] = words;
    asm volatile("ldtilecfg %0" : : "m"(config));
  }
  // The system then has no tiles to save when it takes the core away.
  static void end() { asm volatile("tilerelease"); }
  template <int t>
  static void clear() {
    asm volatile("tilezero %%tmm%c0" : : "i"(t));
  }
  template <int t>
  static void read(const void* at, int64_t stride) {
    asm volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(at), "r"(stride), "i"(t) : "memory");
  }
  template <int t>
  static void write(void* at) {
    int64_t stride = kTileBytes;
    asm volatile("tilestored %%tmm%c2, (%0,%1,1)" : : "r"(at), "r"(stride), "i"(t) : "memory");
  }
  template <int sums, int x, int weights>
  static void dot_bytes() {
    asm volatile("tdpbsud %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(sums), "i"(x), "i"(weights));
  }
  template <int sums, int x, int weights>
  static void dot_bf16() {
    asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(sums), "i"(x), "i"(weights));
  }
};

#endif
