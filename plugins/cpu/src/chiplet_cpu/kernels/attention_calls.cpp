// Attention of a step: who works on which rows and tokens, found from the lengths of this moment.
#include <algorithm>
#include <vector>

#include "calls.h"
#include "pool.h"

namespace calls {
namespace {

constexpr int64_t kSplitTokens = 256;  // less is not worth a part of its own
constexpr int64_t kUnit = 128;         // tokens; parts begin at multiples of it
constexpr int64_t kAloneBytes = 64 << 10;  // of keys, values and rows: not worth waking a thread

struct Work {
  std::vector<AttentionItem> items, joined;
  int num_parts = 0;
  int64_t row_tokens = 0;  // query rows times tokens that they see, about

  void clear() {
    items.clear();
    joined.clear();
    num_parts = 0;
    row_tokens = 0;
  }
};

// Query rows of one request and head, whose tokens are cut into parts if there are many of them.
void add_rows(Work& work, AttentionItem item, int64_t longest_part) {
  int64_t count = item.kv_end - item.kv_begin;
  int64_t parts = std::max<int64_t>(1, (count + longest_part / 2) / longest_part);
  work.row_tokens += count * item.num_rows;
  if (parts == 1) {
    work.items.push_back(item);
    return;
  }
  int64_t begin = item.kv_begin, end = item.kv_end;
  int64_t length = (count / parts + kUnit - 1) / kUnit * kUnit;
  AttentionItem joined = item;
  joined.part = work.num_parts;
  joined.kv_end = 0;
  for (; begin < end; begin += length) {
    item.kv_begin = begin;
    item.kv_end = std::min(end, begin + length);
    item.part = work.num_parts++;
    work.items.push_back(item);
    ++joined.kv_end;
  }
  work.joined.push_back(joined);
}

// Tokens that some row of the block sees: from the first row's window to the last row itself.
void set_tokens(AttentionItem& item, const AttentionArgs& a, int64_t first_position) {
  int64_t first = first_position + item.first_row / a.group;
  int64_t last = first_position + (item.first_row + item.num_rows - 1) / a.group;
  item.kv_begin = a.window > 0 ? std::max<int64_t>(0, first + 1 - a.window) / 16 * 16 : 0;
  item.kv_end = last + 1;
}

int64_t total_tokens(const AttentionArgs& a, int64_t num_requests) {
  int64_t total = 0;
  for (int64_t request = 0; request < num_requests; ++request) {
    if (a.query_starts[request] == a.query_starts[request + 1]) continue;
    int64_t length = a.kv_lengths[request];
    total += a.window > 0 ? std::min(length, a.window) : length;
  }
  return total * a.num_kv_heads;
}

void find_work(Work& work, const AttentionArgs& a, int64_t num_requests) {
  work.clear();
  int threads = pool::threads();
  int64_t longest_part = INT64_MAX / 2;
  if (threads > 1) {
    int64_t share = total_tokens(a, num_requests) / (4 * threads);
    longest_part = std::max(kSplitTokens, (share + kUnit - 1) / kUnit * kUnit);
  }
  for (int64_t request = 0; request < num_requests; ++request) {
    int64_t num_queries = a.query_starts[request + 1] - a.query_starts[request];
    int64_t num_rows = num_queries * a.group;
    for (int64_t head = 0; head < a.num_kv_heads; ++head) {
      for (int64_t row = 0; row < num_rows; row += kAttentionRows) {
        int rows = (int)std::min<int64_t>(kAttentionRows, num_rows - row);
        AttentionItem item{request, head, row, rows, -1, 0, 0};
        set_tokens(item, a, a.kv_lengths[request] - num_queries);
        add_rows(work, item, longest_part);
      }
    }
  }
}

}  // namespace

void attention(AttentionArgs a, const KvWriteArgs& write, int64_t num_tokens,
               int64_t num_requests) {
  int64_t row_bytes = 8 * write.num_kv_heads * write.head_dim;
  pool::for_ranges(num_tokens, 1 + kAloneBytes / row_bytes, [&](int64_t begin, int64_t end) {
    kernels().write_kv(write, begin, end);
  });
  static Work& work = *new Work;  // one operation at a time
  find_work(work, a, num_requests);
  int64_t part_floats = kAttentionRows * (a.head_dim + 2);
  if (work.num_parts) {
    a.parts = (float*)pool::shared_memory(work.num_parts * part_floats * sizeof(float));
  }
  int64_t num_items = (int64_t)work.items.size();
  bool is_small = work.row_tokens * a.head_dim * 4 < kAloneBytes;
  pool::for_ranges(num_items, is_small ? num_items : 1, [&](int64_t begin, int64_t end) {
    kernels().attend(a, work.items.data(), begin, end);
  });
  int64_t num_joined = (int64_t)work.joined.size();
  pool::for_ranges(num_joined, 8, [&](int64_t begin, int64_t end) {
    kernels().join_parts(a, work.joined.data(), begin, end);
  });
}

}  // namespace calls
