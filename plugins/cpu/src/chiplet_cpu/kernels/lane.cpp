#include "lane.h"

#include <pthread.h>

#include <atomic>
#include <cstring>
#include <deque>
#include <mutex>
#include <new>
#include <utility>
#include <vector>

#include "pool.h"
#include "tape.h"

namespace lane {
namespace {

struct Launched {
  int64_t tape;
  void* inputs;
  std::vector<char> values;
  const void* result;
  void* out;
  int64_t result_bytes;
};

// Never destroyed: the pool's threads use them until the process is gone.
std::mutex& g_lock = *new std::mutex;
std::deque<Launched>& g_queue = *new std::deque<Launched>;
std::atomic<int64_t> g_num_launched{0};
std::atomic<int64_t> g_num_done{0};

bool take(Launched& next) {
  std::lock_guard<std::mutex> lock(g_lock);
  if (g_queue.empty()) return false;
  next = std::move(g_queue.front());
  g_queue.pop_front();
  return true;
}

void run_all() {
  Launched step;
  while (take(step)) {
    std::memcpy(step.inputs, step.values.data(), step.values.size());
    tape::replay(step.tape, 0, INT64_MAX);
    std::memcpy(step.out, step.result, step.result_bytes);
    g_num_done.fetch_add(1, std::memory_order_seq_cst);
    pool::wake();
  }
}

// A forked child has no thread that runs them.
void after_fork() {
  new (&g_lock) std::mutex;
  g_queue.clear();
  g_num_done.store(g_num_launched.load());
}

bool is_done(int64_t number) { return num_done() >= number; }

}  // namespace

int64_t launch(int64_t tape, void* inputs, void* values, int64_t num_bytes, void* result, void* out,
               int64_t result_bytes) {
  if (pool::threads() == 1) return 0;
  static bool is_registered = pthread_atfork(nullptr, nullptr, after_fork) == 0;
  (void)is_registered;
  auto* first = (const char*)values;
  int64_t number;
  {
    std::lock_guard<std::mutex> lock(g_lock);
    g_queue.push_back({tape, inputs, {first, first + num_bytes}, result, out, result_bytes});
    number = ++g_num_launched;
  }
  pool::start(run_all);
  return number;
}

int64_t num_done() { return g_num_done.load(std::memory_order_seq_cst); }

void wait(int64_t number) {
  if (!is_done(number)) pool::help(is_done, number);
}

void wait_for_all() { wait(g_num_launched.load(std::memory_order_seq_cst)); }

}  // namespace lane
