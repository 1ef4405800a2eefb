// Instruction sets that this build has and this processor runs, worst first.
#pragma once

#include "table.h"

namespace dispatch {

int num_available();
const char* name(int level);
// Serve with this one from now on; false if it is not available.
bool use(const char* name);

}  // namespace dispatch
