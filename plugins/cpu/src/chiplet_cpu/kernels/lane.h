// Steps that run while their caller goes on, one after another in the order of their launch.
#pragma once

#include <cstdint>

namespace lane {

// Has a tape repeated after all that was launched before: `num_bytes` of `values`, which are kept until
// then, are put into the step's `inputs` first, and `result_bytes` of its `result` to `out` at last.
// The step's number, counted from 1; 0 where there is no thread to run it, and nothing happens.
int64_t launch(int64_t tape, void* inputs, void* values, int64_t num_bytes, void* result, void* out,
               int64_t result_bytes);
// How many of them have ended.
int64_t num_done();
// Takes part in their loops until the step of that number has ended.
void wait(int64_t number);
// The same, until there are none.
void wait_for_all();

}  // namespace lane
