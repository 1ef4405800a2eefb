// Threads that share one loop at a time, or several in turn.
#pragma once

#include <cstdint>

namespace pool {

// How many threads work, the calling one included; takes effect at the next loop.
void set_threads(int count);
int threads();

// From now on thread `index` runs on this processor alone; on all that the caller may use, if it is
// negative. Thread 0 is whoever calls: it is left as it is.
void bind_thread(int index, int processor);

// Calls body(context, begin, end) for ranges that cover [0, count), each at most `grain` long,
// on all threads, and returns when all are done. The caller takes part. Bodies must not throw.
using Body = void (*)(void* context, int64_t begin, int64_t end);
void run(int64_t count, int64_t grain, Body body, void* context);

template <class Function>
void for_ranges(int64_t count, int64_t grain, Function function) {
  run(count, grain,
      [](void* context, int64_t begin, int64_t end) { (*(Function*)context)(begin, end); },
      &function);
}

// The last of the threads calls `jobs` as soon as it can, while the caller goes on: it is the
// caller of the loops in there, in which all other threads take part, and whoever helps. False, and
// nothing happens, where there is but one thread.
using Jobs = void (*)();
bool start(Jobs jobs);
// Takes part in loops of others until is_done(number), which whoever makes it true tells by `wake`.
using IsDone = bool (*)(int64_t number);
void help(IsDone is_done, int64_t number);
void wake();

// A loop of a chain, as `run` has it.
struct Loop {
  int64_t count, grain;
  Body body;
  void* context;
};
// Several loops, each begun when all of the one before is done. Threads go from one to the next by
// themselves, so that short loops cost less than one `run` after another.
constexpr int kMostLoops = 8;
void run_chain(const Loop* loops, int count);

// Loops gathered for one call of run_chain.
template <class Function>
Loop loop_of(int64_t count, int64_t grain, Function& function) {
  auto body = [](void* context, int64_t begin, int64_t end) { (*(Function*)context)(begin, end); };
  return {count, grain, body, &function};
}

// A range length that gives every thread a few ranges: enough to even out, few enough to stream.
inline int64_t even_grain(int64_t count) {
  int64_t parts = 4 * (int64_t)threads();
  return (count + parts - 1) / parts;
}

// Memory for what one operation shares between its loops; valid until the next operation asks.
void* shared_memory(int64_t bytes);
// Memory of the calling thread, valid until it asks again.
void* own_memory(int64_t bytes);

}  // namespace pool
