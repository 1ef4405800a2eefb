// Collectives among processes of one host, through memory that they share. Every rank makes the same
// calls in the same order; each returns when this rank has its result.
#pragma once

#include <cstdint>

namespace group {

// What is summed: the codes of Dtype, and one more for numbers of 32 bits.
constexpr int64_t kInt32 = 3;

// Bytes of the memory that so many ranks share.
int64_t memory_bytes(int64_t size);

// This rank's end, as an address; 0 if the memory cannot be mapped. `memory` is a file of so many
// bytes, zeros before the first rank comes. `peers` [size] int32 are files, one for each rank, that hang
// up when the rank is gone; they stay the caller's, who keeps them open until `close`.
int64_t open(int64_t memory, int64_t rank, int64_t size, void* peers);
// Gives up: a call that waits in another thread ends as if a peer had gone. The address stays valid,
// since tapes may hold it; calls do nothing from now on.
void close(void* group);

// A rank that was waited for in vain by calls of this thread since the last question; -1 if none was.
// What these calls should have written is not there.
int64_t take_lost();

void all_reduce(void* group, int64_t kind, void* x, int64_t count, void* out);
// x [size, count], out [count].
void reduce_scatter(void* group, int64_t kind, void* x, int64_t count, void* out);
// x [bytes], out [size, bytes].
void all_gather(void* group, void* x, int64_t bytes, void* out);
// x and out [size, bytes].
void all_to_all(void* group, void* x, int64_t bytes, void* out);
void broadcast(void* group, int64_t source, void* x, int64_t bytes, void* out);
void send(void* group, int64_t target, void* x, int64_t bytes);
void recv(void* group, int64_t source, int64_t bytes, void* out);
void barrier(void* group);

}  // namespace group
