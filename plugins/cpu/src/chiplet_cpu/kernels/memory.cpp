#include "memory.h"

#if defined(__linux__)
#include <sys/mman.h>
#include <unistd.h>

#include <vector>
#endif

namespace memory {

#if defined(__linux__)

int64_t use_huge_pages(void* address, int64_t bytes) {
  constexpr uintptr_t kHuge = 2 << 20;
  constexpr int kCollapse = 25;  // MADV_COLLAPSE, from Linux 6.1 on; older ones refuse it
  uintptr_t first = ((uintptr_t)address + kHuge - 1) / kHuge * kHuge;
  uintptr_t end = ((uintptr_t)address + bytes) / kHuge * kHuge;
  if (first >= end) return 0;
  if (madvise((void*)first, end - first, MADV_HUGEPAGE) != 0) return -1;
  std::vector<unsigned char> resident(kHuge / sysconf(_SC_PAGESIZE));
  int64_t made = 0;
  for (; first < end; first += kHuge) {
    if (mincore((void*)first, kHuge, resident.data()) != 0) continue;
    bool is_touched = false;
    for (unsigned char each : resident) is_touched |= each & 1;
    if (is_touched && madvise((void*)first, kHuge, kCollapse) == 0) ++made;
  }
  return made;
}

#else

int64_t use_huge_pages(void*, int64_t) { return -1; }

#endif

}  // namespace memory
