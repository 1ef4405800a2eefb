// Calls of kernels, written down once and repeated: a step without its Python.
#pragma once

#include <cstdint>
#include <functional>
#include <mutex>

namespace tape {

using Call = std::function<void()>;

// Calls of kernels by this thread go to a new tape from now on, instead of being made.
void begin();
// Ends the recording; the tape's number. 0 if nothing was being recorded.
int64_t end();
bool is_recording();
void add(Call call);
// Calls written down so far in this recording.
int64_t length();

// Makes calls [first, last) of a tape.
void replay(int64_t number, int64_t first, int64_t last);
void drop(int64_t number);

// Operations share workspaces: one at a time, whichever thread asks.
std::mutex& operation();

template <class Function>
void make(const Function& function) {
  std::lock_guard<std::mutex> lock(operation());
  function();
}

}  // namespace tape
