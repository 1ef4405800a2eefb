// Which instruction set serves: the best that the processor and the build have, or a lower one.
#include "dispatch.h"

#include <cstring>

#if defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#define CHIPLET_DECLARE(name) \
  namespace name {            \
  extern const Kernels table; \
  }
CHIPLET_DECLARE(portable)
CHIPLET_DECLARE(tiles_model)
#if defined(CHIPLET_X86)
CHIPLET_DECLARE(avx2)
CHIPLET_DECLARE(avx512)
CHIPLET_DECLARE(avx512_vnni)
CHIPLET_DECLARE(avx512_bf16)
CHIPLET_DECLARE(amx)
#endif

namespace dispatch {
namespace {

#if defined(CHIPLET_X86)

bool bit(unsigned value, int index) { return value >> index & 1; }

// The operating system must save the wider registers: their bits in XCR0.
uint64_t saved_registers() {
  unsigned low, high;
  asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (uint64_t)high << 32 | low;
}

// Linux hands out the tile registers on request.
bool may_use_tiles() {
  constexpr int kRequest = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kRequest, kTileData) == 0;
}

int best_level() {
  unsigned a, b, c, d, b7, c7, d7, a71 = 0;
  if (!__get_cpuid(1, &a, &b, &c, &d) || !bit(c, 27)) return 0;
  bool has_fma = bit(c, 12), has_f16c = bit(c, 29);
  if (!__get_cpuid_count(7, 0, &a, &b7, &c7, &d7)) return 0;
  if (a >= 1) __get_cpuid_count(7, 1, &a71, &b, &c, &d);
  uint64_t saved = saved_registers();
  if ((saved & 6) != 6 || !bit(b7, 5) || !has_fma || !has_f16c) return 0;
  bool has_512 = bit(b7, 16) && bit(b7, 17) && bit(b7, 30) && bit(b7, 31);  // F, DQ, BW, VL
  if ((saved & 0xe6) != 0xe6 || !has_512) return 1;
  if (!bit(c7, 11)) return 2;
  if (!bit(a71, 5)) return 3;
  bool has_tiles = bit(d7, 22) && bit(d7, 24) && bit(d7, 25);
  if ((saved & 0x60000) != 0x60000 || !has_tiles || !may_use_tiles()) return 4;
  return 5;
}

const Kernels* const kTables[] = {&portable::table,    &avx2::table,        &avx512::table,
                                  &avx512_vnni::table, &avx512_bf16::table, &amx::table};
#else
int best_level() { return 0; }
const Kernels* const kTables[] = {&portable::table};
#endif

const int g_best = best_level();
const Kernels* g_table = kTables[g_best];

}  // namespace

int num_available() { return g_best + 1; }
const char* name(int level) { return kTables[level]->name; }

bool use(const char* wanted) {
  for (int level = 0; level <= g_best; ++level) {
    if (!std::strcmp(wanted, kTables[level]->name)) {
      g_table = kTables[level];
      return true;
    }
  }
  if (std::strcmp(wanted, tiles_model::table.name)) return false;
  g_table = &tiles_model::table;
  return true;
}

}  // namespace dispatch

const Kernels& kernels() { return *dispatch::g_table; }
