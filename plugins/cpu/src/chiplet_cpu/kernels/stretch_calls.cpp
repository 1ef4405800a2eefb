// From one attention to the next in one chain of loops: products with the norms, gates and sums
// between them. Each product is two loops: norm or gate and x's form, in tiles of rows, then panels.
#include <algorithm>
#include <array>

#include "calls.h"
#include "pool.h"
#include "product.h"

namespace calls {
namespace {

// So few are bound by reading panels, which is fastest one after another, while those of a gate and of
// what it is for lie apart.
constexpr int64_t kFewRows = 2;

class Stretch {
 public:
  Stretch(Dtype dtype, const StretchArgs& args, const Rows& attended, const void* residual,
          void* total, void* following)
      : dtype_(dtype),
        a_(args),
        attended_(attended),
        residual_(residual),
        total_(total),
        following_(following),
        rows_(attended.rows),
        hidden_(args.out.n),
        width_(args.gate_up.n / 2),
        // A panel that holds gates and what they are for is no gated one.
        is_gated_(rows_ > kFewRows && width_ % kPanel == 0) {}

  void run() {
    int64_t form_bytes = 0;
    for (const Product& each : products()) form_bytes = std::max(form_bytes, each.bytes());
    lay_out((char*)pool::shared_memory(lay_out(nullptr) + form_bytes));
    auto [out, gate_up, down, next] = products();
    for (Product* each : {&out, &gate_up, &down, &next}) each->place(form_);

    auto before_out = [&](int64_t begin, int64_t end) { out.prepare(begin, end); };
    auto before_gate_up = [&](int64_t begin, int64_t end) {
      norm(sum_, a_.norm, begin, end);
      gate_up.prepare(begin, end);
    };
    auto before_down = [&](int64_t begin, int64_t end) {
      if (!is_gated_) apply_gates(begin, end);
      down.prepare(begin, end);
    };
    auto before_next = [&](int64_t begin, int64_t end) {
      norm(total_, a_.following_norm, begin, end);
      next.prepare(begin, end);
    };
    auto panels = [](const Product& product) {
      return [&product](int64_t begin, int64_t end) { product.multiply(begin, end); };
    };
    auto of_out = panels(out), of_gate_up = panels(gate_up), of_down = panels(down),
         of_next = panels(next);
    int64_t tiles = (rows_ + tile() - 1) / tile();
    pool::Loop loops[pool::kMostLoops] = {
        pool::loop_of(tiles, 1, before_out),
        pool::loop_of(out.num_panels(), out.panel_grain(), of_out),
        pool::loop_of(tiles, 1, before_gate_up),
        pool::loop_of(gate_up.num_panels(), gate_up.panel_grain(), of_gate_up),
        pool::loop_of(tiles, 1, before_down),
        pool::loop_of(down.num_panels(), down.panel_grain(), of_down),
        pool::loop_of(tiles, 1, before_next),
        pool::loop_of(next.num_panels(), next.panel_grain(), of_next),
    };
    pool::run_chain(loops, following_ ? 8 : 6);
  }

 private:
  // Gives `memory` out, with x's form at its end; the bytes before that.
  int64_t lay_out(char* memory) {
    int64_t size = dtype_ == Dtype::float32 ? 4 : 2, used = 0;
    auto take = [&](int64_t width) {
      void* at = memory + used;
      used += (rows_ * width * size + 63) / 64 * 64;
      return at;
    };
    sum_ = take(hidden_);
    normed_ = take(hidden_);
    gates_ = take(is_gated_ ? 0 : 2 * width_);
    inner_ = take(width_);
    form_ = memory + used;
    return used;
  }

  std::array<Product, 4> products() const {
    Rows normed{normed_, hidden_, rows_}, inner{inner_, width_, rows_};
    return {
        product(a_.out, attended_, hidden_, residual_, sum_),
        is_gated_ ? product(a_.gate_up, normed, width_, nullptr, inner_)
                  : product(a_.gate_up, normed, 2 * width_, nullptr, gates_),
        product(a_.down, inner, hidden_, sum_, total_),
        product(a_.following, normed, a_.following.n, nullptr, following_),
    };
  }

  Product product(const StretchProduct& p, const Rows& x, int64_t n, const void* residual,
                  void* out) const {
    LinearArgs args{nullptr, p.panels, p.bias, out, 0, rows_, p.k, n, p.panel_bytes, p.coding};
    args.is_gated = n != p.n;
    args.residual = residual;
    return Product(dtype_, x, args, p.is_rounded);
  }

  int64_t tile() const { return kernels().code_rows; }
  int64_t last_row(int64_t end) const { return std::min(rows_, end * tile()); }

  // Of rows of tiles [begin, end), like the next.
  void norm(const void* x, const void* weight, int64_t begin, int64_t end) const {
    NormArgs n{x, nullptr, weight, normed_, nullptr, hidden_, 0, hidden_, a_.eps};
    kernels().rms_norm(dtype_, n, begin * tile(), last_row(end));
  }

  void apply_gates(int64_t begin, int64_t end) const {
    SiluMulArgs s{gates_, inner_, 2 * width_, width_};
    kernels().silu_mul(dtype_, s, begin * tile(), last_row(end));
  }

  Dtype dtype_;
  const StretchArgs& a_;
  Rows attended_;
  const void* residual_;
  void *total_, *following_;
  int64_t rows_, hidden_, width_;
  bool is_gated_;
  void *sum_ = nullptr, *normed_ = nullptr, *gates_ = nullptr, *inner_ = nullptr, *form_ = nullptr;
};

}  // namespace

void stretch(Dtype dtype, const StretchArgs& args, const Rows& attended, const void* residual,
             void* total, void* following) {
  Stretch(dtype, args, attended, residual, total, following).run();
}

}  // namespace calls
