#include "shared_words.h"

#include <chrono>
#include <climits>
#include <ctime>

#include <sched.h>

#if defined(__linux__)
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace shared {
namespace {

// Ranks that compute equally much come within this time of each other; who is later than that has lost
// its core, perhaps to whoever spins.
constexpr auto kSpin = std::chrono::microseconds(100);
// Ranks that the system has put on one processor come no further while one of them spins: after this
// time each look gives way, by which the system sees too that both want to run.
constexpr auto kStay = std::chrono::microseconds(5);
constexpr timespec kSleep = {0, 50'000'000};

static_assert(std::atomic<uint32_t>::is_always_lock_free && sizeof(std::atomic<uint32_t>) == 4);

inline void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

}  // namespace

void raise(Word& word, uint32_t count) {
  word.count.store(count, std::memory_order_seq_cst);
#if defined(__linux__)
  if (word.sleepers.load(std::memory_order_seq_cst) > 0) {
    syscall(SYS_futex, &word.count, FUTEX_WAKE, INT_MAX, nullptr, nullptr, 0);
  }
#endif
}

bool spin_for(const Word& word, uint32_t wanted) {
  if (has_reached(word, wanted)) return true;
  auto begin = std::chrono::steady_clock::now();
  bool is_staying = true;
  for (int turn = 1;; ++turn) {
    if (has_reached(word, wanted)) return true;
    if (!is_staying || turn % 64 == 0) {
      auto taken = std::chrono::steady_clock::now() - begin;
      if (taken > kSpin) return false;
      is_staying = taken < kStay;
    }
    if (is_staying) {
      relax();
    } else {
      sched_yield();
    }
  }
}

void sleep_for(Word& word, uint32_t wanted) {
#if defined(__linux__)
  // Counted first: whoever raises the count after this look sees somebody to wake.
  word.sleepers.fetch_add(1, std::memory_order_seq_cst);
  uint32_t seen = word.count.load(std::memory_order_seq_cst);
  if ((int32_t)(seen - wanted) < 0) {
    syscall(SYS_futex, &word.count, FUTEX_WAIT, seen, &kSleep, nullptr, 0);
  }
  word.sleepers.fetch_sub(1, std::memory_order_seq_cst);
#else
  (void)wanted;
  constexpr timespec kNap = {0, 100'000};
  nanosleep(&kNap, nullptr);
#endif
}

}  // namespace shared
