// Workers spin for a moment, because the next loop of a step mostly follows within microseconds,
// then sleep on a futex (through std::condition_variable), because other processes need the cores.
#include "pool.h"

#include <pthread.h>
#include <sched.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <mutex>
#include <new>
#include <thread>
#include <vector>

namespace pool {
namespace {

// Long enough to bridge the interpreter's work between two kernels, short beside a time slice.
constexpr auto kSpin = std::chrono::microseconds(50);

std::mutex& g_caller = *new std::mutex;  // one loop at a time
int g_wanted = 1;
std::atomic<int> g_started{1};  // threads that exist, the caller included
std::atomic<Jobs> g_jobs{nullptr};  // for the last thread

// How far a loop of the chain is.
struct alignas(64) Progress {
  std::atomic<int64_t> next{0}, done{0};
};
const Loop* g_loops;
int g_num_loops;
Progress g_progress[kMostLoops];
std::atomic<uint32_t> g_round{0};   // odd while a loop may be joined
std::atomic<int> g_inside{0};       // workers that may still touch the loop
std::atomic<int> g_sleeping{0};
// Never destroyed: workers sleep on them until the process is gone, and destroying a condition
// waits for its sleepers.
std::mutex& g_sleep = *new std::mutex;
std::condition_variable& g_wake = *new std::condition_variable;
thread_local bool t_is_inside = false;

// By thread; those that have not been started are bound when they are.
struct Worker {
  bool is_started = false;
  pthread_t handle{};
  int processor = -1;
};
std::vector<Worker>& g_workers = *new std::vector<Worker>;

inline void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Until is_over(); whoever is waited for may have lost its core.
template <class IsOver>
void await(IsOver is_over) {
  for (int turn = 0; !is_over(); ++turn) {
    relax();
    if (turn > 1000) sched_yield();
  }
}

void take_ranges(const Loop& loop, Progress& progress) {
  for (;;) {
    int64_t begin = progress.next.fetch_add(loop.grain, std::memory_order_relaxed);
    if (begin >= loop.count) return;
    int64_t end = begin + loop.grain < loop.count ? begin + loop.grain : loop.count;
    loop.body(loop.context, begin, end);
    progress.done.fetch_add(end - begin, std::memory_order_acq_rel);
  }
}

void take_loops() {
  for (int i = 0; i < g_num_loops; ++i) {
    take_ranges(g_loops[i], g_progress[i]);
    if (i + 1 == g_num_loops) return;  // whoever called waits for all that are inside
    await([i] { return g_progress[i].done.load(std::memory_order_acquire) == g_loops[i].count; });
  }
}

// A round that is open and not the one seen last; that one if something else is to be done first.
template <class IsOther>
uint32_t await_round(uint32_t seen, IsOther is_other) {
  auto until = std::chrono::steady_clock::now() + kSpin;
  uint32_t round;
  auto is_over = [&] {
    round = g_round.load(std::memory_order_seq_cst);
    if (round != seen && (round & 1)) return true;
    round = seen;
    return is_other();
  };
  for (int turn = 0; !is_over(); ++turn) {
    if (turn % 64 == 63 && std::chrono::steady_clock::now() > until) {
      std::unique_lock<std::mutex> lock(g_sleep);
      g_sleeping.fetch_add(1, std::memory_order_seq_cst);
      g_wake.wait(lock, is_over);
      g_sleeping.fetch_sub(1, std::memory_order_seq_cst);
      break;
    }
    relax();
  }
  return round;
}

void join(uint32_t round, bool is_wanted) {
  g_inside.fetch_add(1, std::memory_order_seq_cst);
  // The caller closes the round before it waits for those inside: whoever still sees it open
  // has been counted.
  if (g_round.load(std::memory_order_seq_cst) == round && is_wanted) take_loops();
  g_inside.fetch_sub(1, std::memory_order_release);
}

void work(int index, uint32_t seen) {
  auto has_jobs = [index] { return index == g_wanted - 1 && g_jobs.load() != nullptr; };
  for (;;) {
    t_is_inside = true;
    uint32_t round = await_round(seen, has_jobs);
    if (round != seen) {
      join(round, index < g_wanted);
      seen = round;
    } else {
      t_is_inside = false;  // as any caller, it has others take part in its loops
      if (Jobs jobs = g_jobs.exchange(nullptr)) jobs();
      seen = g_round.load(std::memory_order_seq_cst);
    }
  }
}

Worker& worker(int index) {
  if ((int)g_workers.size() <= index) g_workers.resize(index + 1);
  return g_workers[index];
}

void bind(const Worker& worker) {
#if defined(__linux__)
  // Room for more processors than cpu_set_t has.
  constexpr int kMost = 8192;
  cpu_set_t* set = CPU_ALLOC(kMost);
  size_t bytes = CPU_ALLOC_SIZE(kMost);
  if (!set) return;
  CPU_ZERO_S(bytes, set);
  bool is_known = true;
  if (worker.processor < 0) {
    is_known = sched_getaffinity(0, bytes, set) == 0;
  } else {
    CPU_SET_S(worker.processor, bytes, set);
  }
  // A processor that has gone offline is no reason to stop: the thread stays where it was.
  if (is_known) (void)pthread_setaffinity_np(worker.handle, bytes, set);
  CPU_FREE(set);
#endif
}

// A forked child has none of the threads.
void after_fork() {
  g_started = 1;
  for (Worker& each : g_workers) each.is_started = false;
  g_inside.store(0);
  g_sleeping.store(0);
  g_round.store(0);
  g_jobs.store(nullptr);
  new (&g_caller) std::mutex;
  new (&g_sleep) std::mutex;
  new (&g_wake) std::condition_variable;
}

void start_missing() {
  static bool is_registered = pthread_atfork(nullptr, nullptr, after_fork) == 0;
  (void)is_registered;
  for (; g_started < g_wanted; ++g_started) {
    std::thread thread(work, g_started.load(), g_round.load());
    Worker& started = worker(g_started);
    started.is_started = true;
    started.handle = thread.native_handle();
    if (started.processor >= 0) bind(started);
    thread.detach();
  }
}

struct Memory {
  void* data = nullptr;
  int64_t bytes = 0;
  void* grow(int64_t wanted) {
    if (wanted > bytes) {
      std::free(data);
      bytes = (wanted + 4095) / 4096 * 4096;
      data = std::aligned_alloc(64, bytes);
      if (!data) std::abort();  // nothing sensible is left to do in the middle of a step
    }
    return data;
  }
};
Memory g_memory;
thread_local Memory t_memory;

}  // namespace

void set_threads(int count) {
  std::lock_guard<std::mutex> lock(g_caller);
  g_wanted = count < 1 ? 1 : count;
}

int threads() { return g_wanted; }

void bind_thread(int index, int processor) {
  if (index < 1) return;
  std::lock_guard<std::mutex> lock(g_caller);
  Worker& bound = worker(index);
  bound.processor = processor;
  if (bound.is_started) bind(bound);
}

void wake() {
  if (g_sleeping.load(std::memory_order_seq_cst) == 0) return;
  // Taking the lock once makes sure that whoever is about to sleep sees what has changed.
  { std::lock_guard<std::mutex> sleep(g_sleep); }
  g_wake.notify_all();
}

bool start(Jobs jobs) {
  if (g_wanted == 1 || t_is_inside) return false;
  if (g_started < g_wanted) {
    std::lock_guard<std::mutex> lock(g_caller);
    start_missing();
  }
  g_jobs.store(jobs, std::memory_order_seq_cst);
  wake();
  return true;
}

void help(IsDone is_done, int64_t number) {
  t_is_inside = true;
  for (uint32_t seen = 0;;) {
    uint32_t round = await_round(seen, [&] { return is_done(number); });
    if (round == seen) break;
    join(round, true);
    seen = round;
  }
  t_is_inside = false;
}

void run_chain(const Loop* loops, int count) {
  if (g_wanted == 1 || t_is_inside) {
    for (int i = 0; i < count; ++i) loops[i].body(loops[i].context, 0, loops[i].count);
    return;
  }
  std::lock_guard<std::mutex> lock(g_caller);
  start_missing();
  g_loops = loops;
  g_num_loops = count;
  for (int i = 0; i < count; ++i) {
    g_progress[i].next.store(0, std::memory_order_relaxed);
    g_progress[i].done.store(0, std::memory_order_relaxed);
  }
  g_round.fetch_add(1, std::memory_order_seq_cst);
  wake();
  take_loops();
  g_round.fetch_add(1, std::memory_order_seq_cst);
  await([] { return g_inside.load(std::memory_order_seq_cst) == 0; });
}

void run(int64_t count, int64_t grain, Body body, void* context) {
  if (count <= 0) return;
  if (count <= grain) return body(context, 0, count);
  Loop loop{count, grain, body, context};
  run_chain(&loop, 1);
}

void* shared_memory(int64_t bytes) { return g_memory.grow(bytes); }
void* own_memory(int64_t bytes) { return t_memory.grow(bytes); }

}  // namespace pool
