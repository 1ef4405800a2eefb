// What the operating system is told about memory.
#pragma once

#include <cstdint>

namespace memory {

// Asks for huge pages in [address, address + bytes): for what is touched from now on, and, by
// copying, for what has been touched. Untouched memory stays untouched. How many huge pages were
// made of small ones; -1 where the system grants none.
int64_t use_huge_pages(void* address, int64_t bytes);

}  // namespace memory
