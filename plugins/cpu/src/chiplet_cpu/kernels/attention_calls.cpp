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
constexpr int64_t kSharedTokens = 256;     // fewer reads saved are not worth joining parts
constexpr int64_t kManyRows = 16;          // above, products take longer than reading
constexpr int64_t kMostInTurn = 8;         // items of few rows, for a thread at once

bool has_many_rows(const AttentionItem& item) { return item.num_rows > kManyRows; }

// Requests with one token each that have their first tokens in common, as a run of `Work::order`.
struct Group {
  int64_t begin, end, tokens;
};

struct Work {
  std::vector<AttentionItem> items;
  std::vector<AttentionJoin> joins;
  std::vector<int32_t> order;
  std::vector<Group> groups;
  std::vector<bool> is_grouped;  // by request
  int64_t num_part_rows = 0;
  int64_t row_tokens = 0;  // query rows times tokens that they see, about
  int64_t longest_part = 0;
  int64_t longest_shared_part = 0;

  void clear() {
    items.clear();
    joins.clear();
    order.clear();
    groups.clear();
    num_part_rows = 0;
    row_tokens = 0;
  }
};

// Rows whose tokens are cut into parts if there are many of them, or if others join them.
AttentionParts add_rows(Work& work, AttentionItem item, bool is_joined) {
  int64_t count = item.kv_end - item.kv_begin;
  int64_t longest = item.members ? work.longest_shared_part : work.longest_part;
  int64_t parts = std::max<int64_t>(1, (count + longest / 2) / longest);
  work.row_tokens += count * item.num_rows;
  if (parts == 1 && !is_joined) {
    work.items.push_back(item);
    return {};
  }
  int64_t begin = item.kv_begin, end = item.kv_end;
  int64_t length = (count / parts + kUnit - 1) / kUnit * kUnit;
  AttentionParts found{work.num_part_rows, 0, item.num_rows};
  for (; begin < end; begin += length, item.is_first = false, ++found.count) {
    item.kv_begin = begin;
    item.kv_end = std::min(end, begin + length);
    item.part = work.num_part_rows;
    work.num_part_rows += item.num_rows;
    work.items.push_back(item);
  }
  return found;
}

// Tokens that some row of the block sees: from the first row's window to the last row itself. Rows of a
// tree may all stand where the first one does.
void set_tokens(AttentionItem& item, const AttentionArgs& a, int64_t first_position) {
  int64_t first = first_position + item.first_row / a.group;
  int64_t last = first_position + (item.first_row + item.num_rows - 1) / a.group;
  if (tree_of(a, a.query_starts[item.request])) first = first_position;
  item.kv_begin = a.window > 0 ? std::max<int64_t>(0, first + 1 - a.window) / 16 * 16 : 0;
  item.kv_end = last + 1;
}

// Tokens of all items together, or more.
int64_t total_tokens(const AttentionArgs& a, int64_t num_requests) {
  int64_t total = 0;
  for (int64_t request = 0; request < num_requests; ++request) {
    int64_t rows = (a.query_starts[request + 1] - a.query_starts[request]) * a.group;
    int64_t length = a.kv_lengths[request], seen = a.window > 0 ? std::min(length, a.window) : length;
    total += (rows + kAttentionRows - 1) / kAttentionRows * seen;
  }
  return total * a.num_kv_heads;
}

// Whole pages that two requests have in common, their newest tokens left out; in tokens.
int64_t common_tokens(const AttentionArgs& a, int32_t one, int32_t other) {
  const int32_t* pages = a.page_table + one * a.table_stride;
  const int32_t* others = a.page_table + other * a.table_stride;
  int64_t most = (std::min(a.kv_lengths[one], a.kv_lengths[other]) - 1) / a.page_size;
  return (std::mismatch(pages, pages + most, others).first - pages) * a.page_size;
}

// Ends a group at `end`, if what it saves is worth it.
void close_group(Work& work, Group group, int64_t end) {
  group.end = end;
  int64_t size = group.end - group.begin;
  if (size < 2 || (size - 1) * group.tokens < kSharedTokens) return;
  work.groups.push_back(group);
  for (int64_t i = group.begin; i < end; ++i) work.is_grouped[work.order[i]] = true;
}

// Requests that begin with the same page stand together; each joins its neighbour's group unless the
// group would lose more tokens than it gains.
void find_groups(Work& work, const AttentionArgs& a, int64_t num_requests) {
  work.is_grouped.assign(num_requests, false);
  if (a.window > 0 || a.group > kAttentionRows) return;
  for (int64_t request = 0; request < num_requests; ++request) {
    bool is_one = a.query_starts[request + 1] - a.query_starts[request] == 1;
    if (is_one && a.kv_lengths[request] > a.page_size) work.order.push_back((int32_t)request);
  }
  std::stable_sort(work.order.begin(), work.order.end(), [&](int32_t one, int32_t other) {
    return a.page_table[one * a.table_stride] < a.page_table[other * a.table_stride];
  });
  Group group{0, 0, 0};
  for (int64_t i = 1; i < (int64_t)work.order.size(); ++i) {
    int64_t tokens = common_tokens(a, work.order[i - 1], work.order[i]);
    int64_t size = i - group.begin;
    int64_t joined = size == 1 ? tokens : std::min(group.tokens, tokens);
    if (joined * size > group.tokens * (size - 1)) {
      group.tokens = joined;
    } else {
      close_group(work, group, i);
      group = {i, 0, 0};
    }
  }
  close_group(work, group, (int64_t)work.order.size());
}

// Tokens in common are read once for the rows of all members; each member's own, and the join, follow.
void add_group(Work& work, const AttentionArgs& a, const Group& group) {
  int64_t members_at_once = kAttentionRows / a.group;
  for (int64_t first = group.begin; first < group.end; first += members_at_once) {
    int64_t count = std::min(members_at_once, group.end - first);
    const int32_t* members = work.order.data() + first;
    for (int64_t head = 0; head < a.num_kv_heads; ++head) {
      AttentionItem common{members[0], head, 0, count * a.group, 0, group.tokens, 0, members, true};
      AttentionParts shared = add_rows(work, common, true);
      for (int64_t i = 0; i < count; ++i, shared.first += a.group) {
        AttentionItem own{members[i], head, 0, a.group, group.tokens, a.kv_lengths[members[i]],
                          -1,         nullptr, false};
        work.joins.push_back({own, add_rows(work, own, true), shared});
      }
    }
  }
}

void add_request(Work& work, const AttentionArgs& a, int64_t request) {
  int64_t num_queries = a.query_starts[request + 1] - a.query_starts[request];
  int64_t num_rows = num_queries * a.group;
  for (int64_t head = 0; head < a.num_kv_heads; ++head) {
    for (int64_t row = 0; row < num_rows; row += kAttentionRows) {
      int64_t rows = std::min<int64_t>(kAttentionRows, num_rows - row);
      AttentionItem item{request, head, row, rows, 0, 0, -1, nullptr, true};
      set_tokens(item, a, a.kv_lengths[request] - num_queries);
      AttentionParts own = add_rows(work, item, false);
      if (own.count) work.joins.push_back({item, own, {}});
    }
  }
}

// Tokens in common, once for each block of members' rows.
int64_t total_shared_tokens(const Work& work, const AttentionArgs& a) {
  int64_t total = 0, members_at_once = kAttentionRows / a.group;
  for (const Group& group : work.groups) {
    total += (group.end - group.begin + members_at_once - 1) / members_at_once * group.tokens;
  }
  return total * a.num_kv_heads;
}

// So many tokens that each thread has a few parts of them.
int64_t longest_part(int64_t tokens) {
  int threads = pool::threads();
  if (threads == 1) return INT64_MAX / 2;
  return std::max(kSplitTokens, (tokens / (4 * threads) + kUnit - 1) / kUnit * kUnit);
}

void find_work(Work& work, const AttentionArgs& a, int64_t num_requests) {
  work.clear();
  find_groups(work, a, num_requests);
  work.longest_part = longest_part(total_tokens(a, num_requests));
  // Their blocks have many rows and take far longer than others of as many tokens.
  work.longest_shared_part = longest_part(total_shared_tokens(work, a));
  for (const Group& group : work.groups) add_group(work, a, group);
  for (int64_t request = 0; request < num_requests; ++request) {
    if (!work.is_grouped[request]) add_request(work, a, request);
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
  if (work.num_part_rows) {
    int64_t bytes = work.num_part_rows * (a.head_dim + 2) * (int64_t)sizeof(float);
    a.parts = (float*)pool::shared_memory(bytes);
  }
  int64_t num_items = (int64_t)work.items.size();
  bool is_small = work.row_tokens * a.head_dim * 4 < kAloneBytes;
  // Of few rows several items in turn, so that the next one's keys can be fetched beforehand; of many rows,
  // which take longest and come first, one.
  int64_t num_large = std::stable_partition(work.items.begin(), work.items.end(), has_many_rows) -
                      work.items.begin();
  int64_t num_small = num_items - num_large;
  int64_t grain = std::clamp<int64_t>(num_small / (4 * pool::threads()), 1, kMostInTurn);
  int64_t num_turns = num_large + (num_small + grain - 1) / grain;
  auto first_item = [&](int64_t turn) {
    return turn < num_large ? turn : std::min(num_items, num_large + (turn - num_large) * grain);
  };
  pool::for_ranges(num_turns, is_small ? num_turns : 1, [&](int64_t begin, int64_t end) {
    kernels().attend(a, work.items.data(), first_item(begin), first_item(end));
  });
  int64_t num_joins = (int64_t)work.joins.size();
  pool::for_ranges(num_joins, 8, [&](int64_t begin, int64_t end) {
    kernels().join_parts(a, work.joins.data(), begin, end);
  });
}

}  // namespace calls
