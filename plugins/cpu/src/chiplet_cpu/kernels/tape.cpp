#include "tape.h"

#include <map>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

namespace tape {
namespace {

using Calls = std::vector<Call>;

// Never destroyed: other threads may still use them while the process ends.
std::mutex& g_operation = *new std::mutex;
std::mutex& g_list = *new std::mutex;
std::map<int64_t, std::shared_ptr<const Calls>>& g_tapes =
    *new std::map<int64_t, std::shared_ptr<const Calls>>;
int64_t g_last = 0;
thread_local std::unique_ptr<Calls> t_recording;

}  // namespace

void begin() { t_recording = std::make_unique<Calls>(); }

int64_t end() {
  if (!t_recording) return 0;
  t_recording->shrink_to_fit();
  std::shared_ptr<const Calls> calls = std::move(t_recording);
  std::lock_guard<std::mutex> lock(g_list);
  g_tapes[++g_last] = std::move(calls);
  return g_last;
}

bool is_recording() { return t_recording != nullptr; }
void add(Call call) { t_recording->push_back(std::move(call)); }
int64_t length() { return t_recording ? (int64_t)t_recording->size() : 0; }

void replay(int64_t number, int64_t first, int64_t last) {
  std::shared_ptr<const Calls> calls;
  {
    std::lock_guard<std::mutex> lock(g_list);
    auto found = g_tapes.find(number);
    if (found == g_tapes.end()) return;
    calls = found->second;
  }
  if (last > (int64_t)calls->size()) last = (int64_t)calls->size();
  std::lock_guard<std::mutex> lock(g_operation);
  for (int64_t i = first; i < last; ++i) (*calls)[i]();
}

void drop(int64_t number) {
  std::lock_guard<std::mutex> lock(g_list);
  g_tapes.erase(number);
}

std::mutex& operation() { return g_operation; }

}  // namespace tape
