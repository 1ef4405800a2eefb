// Counters in memory that processes share, and how one waits for another's.
#pragma once

#include <atomic>
#include <cstdint>

namespace shared {

// A count that one rank raises and others wait for. It may wrap around.
struct alignas(64) Word {
  std::atomic<uint32_t> count;
  std::atomic<uint32_t> sleepers;
};

inline bool has_reached(const Word& word, uint32_t wanted) {
  return (int32_t)(word.count.load(std::memory_order_acquire) - wanted) >= 0;
}

void raise(Word& word, uint32_t count);

// Looks for as long as another rank on a core of its own may be late; whether the count was reached.
bool spin_for(const Word& word, uint32_t wanted);
// Sleeps until the count is raised, or for as long as one may sleep before one asks whether
// there is still somebody to wait for.
void sleep_for(Word& word, uint32_t wanted);

}  // namespace shared
