// Instruction sets that this build has and this processor runs, worst first.
#pragma once

#include "table.h"

namespace dispatch {

int num_available();
const char* name(int level);
// Serve with this one from now on; false if it is not available. "tiles_model" always is: the kernels
// of tile registers with these in plain code, for tests.
bool use(const char* name);

}  // namespace dispatch
