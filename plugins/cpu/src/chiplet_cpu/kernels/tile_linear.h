// Products of words by tile registers; see word_linear.h, which includes it, for words and panels.
//
// A tile of weights is 16 words of a panel as they stand; one of x is 16 words of 16 rows, which therefore
// stand one after another. Two of each make four products for four reads.

constexpr int kTileWords = kTileBytes / 4;

// Words that go into one product: no more than a span has.
template <class Words>
static inline int tile_words(const WordArgs& x) {
  int64_t words = x.span / Words::kInputs;
  return words < kTileWords ? (int)words : kTileWords;
}

template <class Words>
struct TileProduct {
  static constexpr int kRows = 2 * kRowsOfTile, kPanels = 2;

  template <int sums, int x, int weights>
  static void dot() {
    if constexpr (Words::kInputs == 4) {
      Tiles::dot_bytes<sums, x, weights>();
    } else {
      Tiles::dot_bf16<sums, x, weights>();
    }
  }

  // Sums 0 and 1 are of the first 16 rows, 2 and 3 of the next; even ones of the first panel.
  template <bool has_rows, bool has_panel>
  static void sum_words(const WordArgs& x, PanelRun run, int64_t row, int64_t first,
                        int64_t last) {
    int step = tile_words<Words>(x);
    alignas(64) uint8_t filled[2][kTileWords * kQuad];
    const int32_t* rows = x.x_words + row * x.row_words;
    int64_t stride = x.row_words * 4;
    Tiles::clear<0>(), Tiles::clear<1>(), Tiles::clear<2>(), Tiles::clear<3>();
    for (int64_t w = first; w < last; w += step) {
      const uint8_t* weights = run.first + w * kQuad;
      int64_t next = run.stride, left = last - w;
      if (left < step) {
        // Zeros, whatever the rows have there.
        __builtin_memset(filled, 0, sizeof(filled));
        for (int p = 0; p < 1 + has_panel; ++p) {
          __builtin_memcpy(filled[p], weights + p * run.stride, left * kQuad);
        }
        weights = filled[0], next = sizeof(filled[0]);
      }
      Tiles::read<4>(rows + w, stride);
      Tiles::read<6>(weights, kQuad);
      dot<0, 4, 6>();
      if constexpr (has_panel) {
        Tiles::read<7>(weights + next, kQuad);
        dot<1, 4, 7>();
      }
      if constexpr (has_rows) {
        Tiles::read<5>(rows + kRowsOfTile * x.row_words + w, stride);
        dot<2, 5, 6>();
        if constexpr (has_panel) dot<3, 5, 7>();
      }
    }
  }

  template <class ToResults>
  static void run(const WordArgs& x, PanelRun run, int panels, int64_t row, int rows,
                  ToResults to_results, float (*out)[kRows * kPanel]) {
    alignas(64) typename Words::Sum sums[4][kRowsOfTile * V];
    int64_t step = x.span / Words::kInputs;
    for (int64_t s = 0, first = 0; first < x.words; ++s, first += step) {
      int64_t last = x.words - first < step ? x.words : first + step;
      bool has_rows = rows > kRowsOfTile, has_panel = panels > 1;
      if (has_rows) {
        has_panel ? sum_words<true, true>(x, run, row, first, last)
                  : sum_words<true, false>(x, run, row, first, last);
      } else {
        has_panel ? sum_words<false, true>(x, run, row, first, last)
                  : sum_words<false, false>(x, run, row, first, last);
      }
      Tiles::write<0>(sums[0]), Tiles::write<1>(sums[1]);
      Tiles::write<2>(sums[2]), Tiles::write<3>(sums[3]);
      for (int i = 0; i < rows * panels * V; ++i) {
        int r = i / (panels * V), p = i / V % panels, v = i % V;
        auto sum = sums[r / kRowsOfTile * 2 + p][r % kRowsOfTile * V + v];
        float* at = out[p] + r * kPanel + v * W;
        F before = s ? load(at) : zero();
        store(at, to_results(run.first + p * run.stride, row + r, s, v, sum, before));
      }
    }
  }
};
