// The functions that native.py shows to the rest of the plugin. Tensors come as addresses, sizes
// and strides, so that no version of torch is linked.
#include "binding.h"
#include "calls.h"
#include "dispatch.h"
#include "group.h"
#include "lane.h"
#include "memory.h"
#include "pack.h"
#include "pool.h"
#include "table.h"
#include "tape.h"

#include <cstring>

namespace {

int64_t num_isas() { return dispatch::num_available(); }
const char* isa_name(int64_t level) { return dispatch::name((int)level); }
const char* isa() { return kernels().name; }
const char* sources() { return CHIPLET_SOURCES; }

void use_isa(const char* name) {
  if (!dispatch::use(name)) PyErr_Format(PyExc_ValueError, "instruction set '%s'", name);
}

// No step is left to a thread that is to work no more.
void set_threads(int64_t count) {
  PyThreadState* state = PyEval_SaveThread();
  lane::wait_for_all();
  PyEval_RestoreThread(state);
  pool::set_threads((int)count);
}
int64_t threads() { return pool::threads(); }
void bind_thread(int64_t index, int64_t processor) {
  pool::bind_thread((int)index, (int)processor);
}

// Rows per range: what is worth waking a thread for.
int64_t row_grain(int64_t bytes_per_row) {
  constexpr int64_t kBytes = 64 << 10;
  return 1 + kBytes / (bytes_per_row + 1);
}

void rms_norm(int64_t dtype, void* x, int64_t x_stride, void* residual, int64_t residual_stride,
              void* weight, double eps, void* out, void* total, int64_t rows, int64_t width) {
  NormArgs a{x, residual, weight, out, total, x_stride, residual_stride, width, (float)eps};
  pool::for_ranges(rows, row_grain(8 * width), [&](int64_t begin, int64_t end) {
    kernels().rms_norm((Dtype)dtype, a, begin, end);
  });
}

void rotary(int64_t dtype, void* x, int64_t row_stride, int64_t head_stride, int64_t num_heads,
            int64_t head_dim, void* positions, void* cos_sin, int64_t rows, void* out) {
  RotaryArgs a{x, out, (int32_t*)positions, (float*)cos_sin, row_stride, head_stride, num_heads,
               head_dim};
  pool::for_ranges(rows, row_grain(8 * num_heads * head_dim), [&](int64_t begin, int64_t end) {
    kernels().rotary((Dtype)dtype, a, begin, end);
  });
}

void silu_mul(int64_t dtype, void* gate_up, int64_t stride, int64_t rows, int64_t width,
              void* out) {
  SiluMulArgs a{gate_up, out, stride, width};
  pool::for_ranges(rows, row_grain(12 * width), [&](int64_t begin, int64_t end) {
    kernels().silu_mul((Dtype)dtype, a, begin, end);
  });
}

void sample(void* logits, int64_t stride, int64_t rows, int64_t vocab, void* temperature,
            void* top_k, void* top_p, void* min_p, void* uniform, int64_t has_filters,
            void* out) {
  SampleArgs a{(float*)logits, (float*)temperature, (float*)top_p, (float*)min_p,
               (float*)uniform, (int32_t*)top_k,    (int32_t*)out, stride,
               vocab,           has_filters != 0};
  pool::for_ranges(rows, 1, [&](int64_t begin, int64_t end) { kernels().sample(a, begin, end); });
}

void penalize(void* logits, int64_t stride, void* is_in_prompt, int64_t prompt_stride, void* counts,
              int64_t counts_stride, void* repetition, void* presence, void* frequency,
              int64_t rows, int64_t width, void* out) {
  PenalizeArgs a{(float*)logits,   (uint8_t*)is_in_prompt, (int32_t*)counts, (float*)repetition,
                 (float*)presence, (float*)frequency,      (float*)out,      stride,
                 prompt_stride,    counts_stride,          width};
  pool::for_ranges(rows, row_grain(13 * width), [&](int64_t begin, int64_t end) {
    kernels().penalize(a, begin, end);
  });
}

void mask_tokens(void* logits, int64_t stride, void* mask, int64_t mask_stride, int64_t rows,
                 int64_t width, void* out) {
  MaskArgs a{(float*)logits, (uint32_t*)mask, (float*)out, stride, mask_stride, width};
  pool::for_ranges(rows, row_grain(8 * width), [&](int64_t begin, int64_t end) {
    kernels().mask_tokens(a, begin, end);
  });
}

void argmax(int64_t dtype, void* x, int64_t stride, int64_t rows, int64_t width, void* out) {
  ArgmaxArgs a{x, (int32_t*)out, stride, width};
  pool::for_ranges(rows, row_grain(2 * width), [&](int64_t begin, int64_t end) {
    kernels().argmax((Dtype)dtype, a, begin, end);
  });
}

// Rows of a table; row_bytes of each, stride bytes from one to the next.
void take_rows(void* table, int64_t stride, int64_t row_bytes, void* ids, int64_t count,
               void* out) {
  for (int64_t i = 0; i < count; ++i) {
    std::memcpy((char*)out + i * row_bytes, (char*)table + ((int32_t*)ids)[i] * stride, row_bytes);
  }
}

// Token ids, negative ones -1 - slot replaced by the slot's last token.
void feed(void* ids, void* last_tokens, int64_t count, void* out) {
  for (int64_t i = 0; i < count; ++i) {
    int32_t id = ((int32_t*)ids)[i];
    ((int32_t*)out)[i] = id < 0 ? ((int32_t*)last_tokens)[-1 - id] : id;
  }
}

// Words at places of a vector of `size`; places may count from its end, as in torch. Others are left
// out: there is no one to tell while a step is repeated.
void put_words(void* out, int64_t size, void* places, void* values, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    int64_t place = ((int32_t*)places)[i];
    if (place < 0) place += size;
    if (place >= 0 && place < size) ((int32_t*)out)[place] = ((int32_t*)values)[i];
  }
}

LinearArgs linear_args(int64_t coding, void* panels, int64_t panel_bytes, int64_t rows, int64_t k,
                       int64_t n, void* bias, int64_t is_gated, void* out) {
  return {nullptr, panels, bias, out, 0, rows, k, n, panel_bytes, (Coding)coding, is_gated != 0};
}

void linear(int64_t dtype, void* x, int64_t x_stride, int64_t rows, int64_t coding, void* panels,
            int64_t panel_bytes, int64_t k, int64_t n, void* bias, int64_t is_gated, void* out) {
  calls::linear((Dtype)dtype, {x, x_stride, rows},
                linear_args(coding, panels, panel_bytes, rows, k, n, bias, is_gated, out));
}

void int8_linear(int64_t dtype, void* x, int64_t x_stride, int64_t rows, int64_t coding,
                 void* panels, int64_t panel_bytes, int64_t k, int64_t n, void* bias,
                 int64_t is_gated, void* out) {
  calls::int8_linear((Dtype)dtype, {x, x_stride, rows},
                     linear_args(coding, panels, panel_bytes, rows, k, n, bias, is_gated, out));
}

// `table`: seven words for each product (whether it is rounded, coding, panels, bias, panel_bytes, k,
// n), then the addresses of both norms.
void stretch(int64_t dtype, void* table, double eps, void* attended, void* residual, int64_t rows,
             void* total, void* following) {
  auto* words = (const int64_t*)table;
  auto product = [&](int index) -> calls::StretchProduct {
    const int64_t* w = words + 7 * index;
    return {w[0] != 0, (Coding)w[1], (void*)w[2], (void*)w[3], w[4], w[5], w[6]};
  };
  calls::StretchArgs a{product(0),      product(1),       product(2), product(3),
                       (void*)words[28], (void*)words[29], (float)eps};
  calls::stretch((Dtype)dtype, a, {attended, a.out.k, rows}, residual, total, following);
}

void panel_rows(int64_t dtype, void* ids, int64_t rows, int64_t coding, void* panels,
                int64_t panel_bytes, int64_t k, void* out) {
  RowsArgs a{(int32_t*)ids, panels, out, k, panel_bytes, (Coding)coding};
  calls::rows((Dtype)dtype, a, rows);
}

void attention(int64_t dtype, int64_t kv_dtype, void* q, int64_t q_row_stride,
               int64_t q_head_stride, void* k, int64_t k_row_stride, int64_t k_head_stride, void* v,
               int64_t v_row_stride, int64_t v_head_stride, void* kv, void* kv_rows,
               void* query_starts, void* kv_lengths, void* page_table, int64_t table_stride,
               int64_t num_tokens, int64_t num_requests, int64_t num_kv_heads, int64_t group,
               int64_t head_dim, int64_t page_size, int64_t window, double scale, double softcap,
               int64_t coding, void* sinks, void* tree_bits, void* out) {
  auto type = (Dtype)dtype, kv_type = (Dtype)kv_dtype;
  KvWriteArgs write{k,
                    v,
                    kv,
                    (int32_t*)kv_rows,
                    k_row_stride,
                    k_head_stride,
                    v_row_stride,
                    v_head_stride,
                    num_kv_heads,
                    head_dim,
                    page_size,
                    type,
                    kv_type,
                    (KvCoding)coding};
  AttentionArgs a{q,
                  kv,
                  out,
                  nullptr,
                  (float*)sinks,
                  (int32_t*)query_starts,
                  (int32_t*)kv_lengths,
                  (int32_t*)page_table,
                  (uint32_t*)tree_bits,
                  q_row_stride,
                  q_head_stride,
                  table_stride,
                  num_kv_heads,
                  group,
                  head_dim,
                  page_size,
                  window,
                  (float)scale,
                  (float)softcap,
                  type,
                  kv_type,
                  (KvCoding)coding};
  calls::attention(a, write, num_tokens, num_requests);
}

void raise_if_lost() {
  long long lost = group::take_lost();
  if (lost >= 0) PyErr_Format(PyExc_RuntimeError, "rank %lld of the group has ended", lost);
}

// Without the interpreter's lock: others may plan the next step meanwhile.
void tape_replay(int64_t number, int64_t first, int64_t last) {
  PyThreadState* state = PyEval_SaveThread();
  tape::replay(number, first, last);
  PyEval_RestoreThread(state);
  raise_if_lost();
}

void lane_wait(int64_t number) {
  PyThreadState* state = PyEval_SaveThread();
  lane::wait(number);
  PyEval_RestoreThread(state);
  raise_if_lost();
}

void lane_wait_for_all() {
  PyThreadState* state = PyEval_SaveThread();
  lane::wait_for_all();
  PyEval_RestoreThread(state);
  raise_if_lost();
}

// A collective: on a tape like a kernel. Made at once, it waits for other ranks without the
// interpreter's lock, and other operations need not wait for it.
template <auto function>
struct Collective;

template <class... Args, void (*function)(Args...)>
struct Collective<function> {
  static void call(Args... args) {
    if (tape::is_recording()) {
      tape::add([=] { function(args...); });
      return;
    }
    PyThreadState* state = PyEval_SaveThread();
    function(args...);
    PyEval_RestoreThread(state);
    raise_if_lost();
  }
};

template <auto function>
PyMethodDef collective(const char* name) {
  return binding::query<Collective<function>::call>(name);
}

void close_group(void* group) {
  PyThreadState* state = PyEval_SaveThread();
  group::close(group);
  PyEval_RestoreThread(state);
}

int64_t panel_bytes(int64_t coding, int64_t k) { return pack::panel_bytes((Coding)coding, k); }

void pack_panels(int64_t coding, void* blocks, int64_t n, int64_t k, void* panels) {
  pool::for_ranges((n + kPanel - 1) / kPanel, 8, [&](int64_t begin, int64_t end) {
    pack::panels((Coding)coding, (const uint8_t*)blocks, n, k, (uint8_t*)panels, begin, end);
  });
}

PyMethodDef g_methods[] = {
    binding::query<num_isas>("num_isas"),
    binding::query<isa_name>("isa_name"),
    binding::query<isa>("isa"),
    binding::query<sources>("sources"),
    binding::method<use_isa>("use_isa"),
    binding::query<set_threads>("set_threads"),
    binding::query<threads>("threads"),
    binding::query<bind_thread>("bind_thread"),
    binding::query<memory::use_huge_pages>("use_huge_pages"),
    binding::kernel<rms_norm>("rms_norm"),
    binding::kernel<rotary>("rotary"),
    binding::kernel<silu_mul>("silu_mul"),
    binding::kernel<sample>("sample"),
    binding::kernel<penalize>("penalize"),
    binding::kernel<mask_tokens>("mask_tokens"),
    binding::kernel<argmax>("argmax"),
    binding::kernel<take_rows>("take_rows"),
    binding::kernel<feed>("feed"),
    binding::kernel<put_words>("put_words"),
    binding::kernel<linear>("linear"),
    binding::kernel<attention>("attention"),
    binding::query<tape::begin>("tape_begin"),
    binding::query<tape::end>("tape_end"),
    binding::query<tape::length>("tape_length"),
    binding::query<tape_replay>("tape_replay"),
    binding::query<tape::drop>("tape_drop"),
    binding::query<lane::launch>("lane_launch"),
    binding::query<lane::num_done>("lane_num_done"),
    binding::query<lane_wait>("lane_wait"),
    binding::query<lane_wait_for_all>("lane_wait_for_all"),
    binding::kernel<int8_linear>("int8_linear"),
    binding::kernel<stretch>("stretch"),
    binding::kernel<panel_rows>("panel_rows"),
    binding::query<panel_bytes>("panel_bytes"),
    binding::query<pack_panels>("pack_panels"),
    binding::query<group::memory_bytes>("group_memory_bytes"),
    binding::query<group::open>("group_open"),
    binding::query<close_group>("group_close"),
    collective<group::all_reduce>("group_all_reduce"),
    collective<group::reduce_scatter>("group_reduce_scatter"),
    collective<group::all_gather>("group_all_gather"),
    collective<group::all_to_all>("group_all_to_all"),
    collective<group::broadcast>("group_broadcast"),
    collective<group::send>("group_send"),
    collective<group::recv>("group_recv"),
    collective<group::barrier>("group_barrier"),
    {nullptr, nullptr, 0, nullptr},
};

PyModuleDef g_module = {PyModuleDef_HEAD_INIT, "_native", nullptr, -1, g_methods,
                        nullptr,               nullptr,   nullptr, nullptr};

}  // namespace

PyMODINIT_FUNC PyInit__native() { return PyModule_Create(&g_module); }
