// A rank writes its message to a slot of its own, says so, waits until all have, and reads theirs. Slots
// are double: who writes to one again has seen that all have come to the round between, and so have
// read what it held before.
#include "group.h"

#include <poll.h>
#include <sys/mman.h>

#include <cstring>
#include <vector>

#include "pool.h"
#include "shared_words.h"
#include "table.h"

namespace group {
namespace {

using shared::Word;

constexpr int64_t kSlot = 1 << 20;    // bytes of a message that travel at a time
constexpr int64_t kPacket = 1 << 16;  // the same, from one rank to another
constexpr int64_t kLine = 64;
// From here on each of three ranks or more sums a part for all, and reads 2 (size - 1) / size of a
// message instead of size - 1 of it, for one more round.
constexpr int64_t kShared = 1 << 16;
constexpr int64_t kGrain = 1 << 16;  // bytes that are worth waking a thread for

// What goes from one rank to one other.
struct Channel {
  Word sent, taken;
};

struct Group {
  int64_t rank, size, bytes;
  uint8_t* memory;
  std::vector<int32_t> peers;
  uint32_t round = 0;
  std::vector<uint32_t> sent, taken;  // to and from each rank
  std::atomic<int64_t> inside{0};     // calls that use the memory
  std::atomic<bool> is_closed{false};

  Word& broken() { return ((Word*)memory)[0]; }  // 1 + a rank that some rank waited for in vain
  Word& arrived(int64_t r) { return ((Word*)memory)[1 + r]; }
  Channel& channel(int64_t from, int64_t to) {
    return ((Channel*)((Word*)memory + 1 + size))[from * size + to];
  }
  uint8_t* slot(int64_t r) { return slots() + (2 * r + (round & 1)) * kSlot; }
  uint8_t* packet(int64_t from, int64_t to, uint32_t number) {
    return slots() + 2 * size * kSlot + (2 * (from * size + to) + (number & 1)) * kPacket;
  }

 private:
  uint8_t* slots() { return memory + words_bytes(size); }

 public:
  static int64_t words_bytes(int64_t size) {
    int64_t bytes = (1 + size) * sizeof(Word) + size * size * sizeof(Channel);
    return (bytes + 4095) / 4096 * 4096;
  }
};

thread_local int64_t t_lost = -1;

// A call that uses the memory; it may not if the end is closed.
class Use {
 public:
  explicit Use(void* address) : group_(*(Group*)address) {
    group_.inside.fetch_add(1, std::memory_order_seq_cst);
    if (group_.is_closed.load(std::memory_order_seq_cst)) {
      t_lost = group_.rank;
      is_allowed_ = false;
    } else if (uint32_t broken = group_.broken().count.load(std::memory_order_relaxed)) {
      t_lost = (int64_t)broken - 1;
      is_allowed_ = false;
    }
  }
  ~Use() { group_.inside.fetch_sub(1, std::memory_order_seq_cst); }
  Use(const Use&) = delete;
  explicit operator bool() const { return is_allowed_; }

 private:
  Group& group_;
  bool is_allowed_ = true;
};

bool is_gone(const Group& g, int64_t peer) {
  pollfd asked{g.peers[peer], 0, 0};
  return poll(&asked, 1, 0) == 1 && (asked.revents & (POLLHUP | POLLERR | POLLNVAL));
}

bool await(Group& g, Word& word, uint32_t wanted, int64_t peer) {
  if (shared::spin_for(word, wanted)) return true;
  for (;;) {
    bool is_closed = g.is_closed.load(std::memory_order_seq_cst);
    uint32_t broken = g.broken().count.load(std::memory_order_seq_cst);
    bool is_lost = is_closed || broken || is_gone(g, peer);
    // What a rank did before it went counts.
    if (shared::has_reached(word, wanted)) return true;
    if (is_lost) {
      t_lost = is_closed ? g.rank : broken ? (int64_t)broken - 1 : peer;
      if (!is_closed && !broken) g.broken().count.store(1 + peer, std::memory_order_seq_cst);
      return false;
    }
    shared::sleep_for(word, wanted);
  }
}

// Says that this rank's slot is written, and waits until those of all are.
bool meet(Group& g) {
  uint32_t next = g.round + 1;
  shared::raise(g.arrived(g.rank), next);
  for (int64_t r = 0; r < g.size; ++r) {
    if (r != g.rank && !await(g, g.arrived(r), next, r)) return false;
  }
  return true;
}

void copy(void* to, const void* from, int64_t bytes) {
  pool::for_ranges(bytes, kGrain, [&](int64_t begin, int64_t end) {
    std::memcpy((uint8_t*)to + begin, (const uint8_t*)from + begin, end - begin);
  });
}

int64_t kind_bytes(int64_t kind) { return kind == kInt32 ? 4 : dtype_bytes((Dtype)kind); }

void sum_words(const SumArgs& a, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) {
    uint32_t total = 0;
    for (int64_t p = 0; p < a.num_parts; ++p) total += ((const uint32_t*)a.parts[p])[i];
    ((uint32_t*)a.out)[i] = total;
  }
}

// In the order of ranks, so that each of them gets the same bits.
void sum(int64_t kind, const std::vector<const void*>& parts, int64_t count, void* out) {
  SumArgs a{parts.data(), (int64_t)parts.size(), out};
  pool::for_ranges(count, kGrain / kind_bytes(kind), [&](int64_t begin, int64_t end) {
    if (kind == kInt32) {
      sum_words(a, begin, end);
    } else {
      kernels().sum_parts((Dtype)kind, a, begin, end);
    }
  });
}

// Calls body(begin, count) for runs of at most `most` things, until it gives false.
template <class Body>
void each_run(int64_t count, int64_t most, Body body) {
  for (int64_t begin = 0; begin < count; begin += most) {
    if (!body(begin, count - begin < most ? count - begin : most)) return;
  }
}

// Everyone's slots at `offset`; of this rank, what it wrote there if it lies elsewhere too.
std::vector<const void*> parts_at(Group& g, int64_t offset, const void* own) {
  std::vector<const void*> parts(g.size);
  for (int64_t r = 0; r < g.size; ++r) parts[r] = r == g.rank ? own : g.slot(r) + offset;
  return parts;
}

bool sum_alone(Group& g, int64_t kind, const uint8_t* x, int64_t count, uint8_t* out) {
  copy(g.slot(g.rank), x, count * kind_bytes(kind));
  if (!meet(g)) return false;
  sum(kind, parts_at(g, 0, x), count, out);
  ++g.round;
  return true;
}

// Each rank sums its part, in whole lines, and gives it to the others in a second round.
bool sum_in_turn(Group& g, int64_t kind, const uint8_t* x, int64_t count, uint8_t* out) {
  int64_t bytes = count * kind_bytes(kind);
  int64_t part = (bytes / g.size + kLine) / kLine * kLine;
  auto begin_of = [&](int64_t r) { return r * part < bytes ? r * part : bytes; };
  auto length_of = [&](int64_t r) { return begin_of(r + 1) - begin_of(r); };
  copy(g.slot(g.rank), x, bytes);
  if (!meet(g)) return false;
  int64_t mine = begin_of(g.rank);
  auto parts = parts_at(g, mine, x + mine);
  ++g.round;
  uint8_t* total = g.slot(g.rank) + mine;
  sum(kind, parts, length_of(g.rank) / kind_bytes(kind), total);
  if (!meet(g)) return false;
  for (int64_t r = 0; r < g.size; ++r) {
    copy(out + begin_of(r), g.slot(r) + begin_of(r), length_of(r));
  }
  ++g.round;
  return true;
}

// x [size, ...]: what is for others goes to the slot, `width` bytes for each rank.
void write_slabs(Group& g, const uint8_t* x, int64_t stride, int64_t width) {
  for (int64_t r = 0; r < g.size; ++r) {
    if (r != g.rank) copy(g.slot(g.rank) + r * width, x + r * stride, width);
  }
}

// Of a slot that holds something for each rank; whole lines.
int64_t slab_bytes(const Group& g) { return kSlot / g.size / kLine * kLine; }

}  // namespace

int64_t memory_bytes(int64_t size) {
  return Group::words_bytes(size) + 2 * size * kSlot + 2 * size * size * kPacket;
}

int64_t open(int64_t memory, int64_t rank, int64_t size, void* peers) {
  int64_t bytes = memory_bytes(size);
  void* mapped = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, (int)memory, 0);
  if (mapped == MAP_FAILED) return 0;
  auto* files = (int32_t*)peers;
  auto* g = new Group{rank, size, bytes, (uint8_t*)mapped, {files, files + size}, 0, {}, {}};
  g->sent.assign(size, 0);
  g->taken.assign(size, 0);
  return (int64_t)(intptr_t)g;
}

void close(void* address) {
  Group& g = *(Group*)address;
  if (g.is_closed.exchange(true)) return;
  while (g.inside.load(std::memory_order_seq_cst) > 0) {
    timespec moment{0, 100'000};
    nanosleep(&moment, nullptr);
  }
  munmap(g.memory, g.bytes);
}

int64_t take_lost() {
  int64_t lost = t_lost;
  t_lost = -1;
  return lost;
}

void all_reduce(void* address, int64_t kind, void* x, int64_t count, void* out) {
  Use use(address);
  if (!use) return;
  Group& g = *(Group*)address;
  int64_t width = kind_bytes(kind);
  each_run(count, kSlot / width, [&](int64_t begin, int64_t run) {
    bool is_shared = g.size > 2 && run * width >= kShared;
    auto function = is_shared ? sum_in_turn : sum_alone;
    return function(g, kind, (uint8_t*)x + begin * width, run, (uint8_t*)out + begin * width);
  });
}

void reduce_scatter(void* address, int64_t kind, void* x, int64_t count, void* out) {
  Use use(address);
  if (!use) return;
  Group& g = *(Group*)address;
  int64_t width = kind_bytes(kind);
  each_run(count, slab_bytes(g) / width, [&](int64_t begin, int64_t run) {
    const uint8_t* from = (uint8_t*)x + begin * width;
    write_slabs(g, from, count * width, run * width);
    if (!meet(g)) return false;
    auto parts = parts_at(g, g.rank * run * width, from + g.rank * count * width);
    sum(kind, parts, run, (uint8_t*)out + begin * width);
    ++g.round;
    return true;
  });
}

void all_gather(void* address, void* x, int64_t bytes, void* out) {
  Use use(address);
  if (!use) return;
  Group& g = *(Group*)address;
  each_run(bytes, kSlot, [&](int64_t begin, int64_t run) {
    const uint8_t* from = (uint8_t*)x + begin;
    copy(g.slot(g.rank), from, run);
    if (!meet(g)) return false;
    auto parts = parts_at(g, 0, from);
    for (int64_t r = 0; r < g.size; ++r) copy((uint8_t*)out + r * bytes + begin, parts[r], run);
    ++g.round;
    return true;
  });
}

void all_to_all(void* address, void* x, int64_t bytes, void* out) {
  Use use(address);
  if (!use) return;
  Group& g = *(Group*)address;
  each_run(bytes, slab_bytes(g), [&](int64_t begin, int64_t run) {
    const uint8_t* from = (uint8_t*)x + begin;
    write_slabs(g, from, bytes, run);
    if (!meet(g)) return false;
    auto parts = parts_at(g, g.rank * run, from + g.rank * bytes);
    for (int64_t r = 0; r < g.size; ++r) copy((uint8_t*)out + r * bytes + begin, parts[r], run);
    ++g.round;
    return true;
  });
}

void broadcast(void* address, int64_t source, void* x, int64_t bytes, void* out) {
  Use use(address);
  if (!use) return;
  Group& g = *(Group*)address;
  each_run(bytes, kSlot, [&](int64_t begin, int64_t run) {
    const uint8_t* from = (uint8_t*)x + begin;
    if (g.rank == source) copy(g.slot(source), from, run);
    if (!meet(g)) return false;
    copy((uint8_t*)out + begin, g.rank == source ? from : g.slot(source), run);
    ++g.round;
    return true;
  });
}

void send(void* address, int64_t target, void* x, int64_t bytes) {
  Use use(address);
  if (!use) return;
  Group& g = *(Group*)address;
  Channel& channel = g.channel(g.rank, target);
  each_run(bytes, kPacket, [&](int64_t begin, int64_t run) {
    uint32_t number = g.sent[target];
    // Two packets may be under way.
    if (!await(g, channel.taken, number - 1, target)) return false;
    copy(g.packet(g.rank, target, number), (uint8_t*)x + begin, run);
    shared::raise(channel.sent, g.sent[target] = number + 1);
    return true;
  });
}

void recv(void* address, int64_t source, int64_t bytes, void* out) {
  Use use(address);
  if (!use) return;
  Group& g = *(Group*)address;
  Channel& channel = g.channel(source, g.rank);
  each_run(bytes, kPacket, [&](int64_t begin, int64_t run) {
    uint32_t number = g.taken[source];
    if (!await(g, channel.sent, number + 1, source)) return false;
    copy((uint8_t*)out + begin, g.packet(source, g.rank, number), run);
    shared::raise(channel.taken, g.taken[source] = number + 1);
    return true;
  });
}

void barrier(void* address) {
  Use use(address);
  if (!use) return;
  Group& g = *(Group*)address;
  if (meet(g)) ++g.round;
}

}  // namespace group
