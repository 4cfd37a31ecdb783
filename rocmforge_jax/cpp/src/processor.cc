// The compiled kernels that this processor can run, and the choice among them.

#include "processor.h"

#include <atomic>
#include <cstring>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

// `build.py` defines the macro HAS_<name> for each table that it compiles.
extern "C" const Kernels kernels_plain, kernels_avx2, kernels_avxvnni, kernels_avx512;

namespace {

#if defined(__x86_64__)
bool has_avx2() {
  unsigned a, b, c, d;
  const bool f16c = __get_cpuid(1, &a, &b, &c, &d) && (c >> 29 & 1);
  return f16c && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}

bool has_avxvnni() {
  unsigned a, b, c, d;
  return has_avx2() && __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a >> 4 & 1);
}

bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni");
}
#endif

struct Entry {
  const Kernels* kernels;
  bool (*runs)();
};

// The fastest first.
const Entry kEntries[] = {
#if defined(HAS_avx512)
    {&kernels_avx512, has_avx512},
#endif
#if defined(HAS_avxvnni)
    {&kernels_avxvnni, has_avxvnni},
#endif
#if defined(HAS_avx2)
    {&kernels_avx2, has_avx2},
#endif
    {&kernels_plain, [] { return true; }},
};

const Kernels* quickest() {
  for (const Entry& entry : kEntries)
    if (entry.runs()) return entry.kernels;
  return nullptr;
}

std::atomic<const Kernels*> chosen{nullptr};

}  // namespace

const Kernels& kernels() {
  const Kernels* found = chosen.load(std::memory_order_acquire);
  if (!found) chosen.store(found = quickest(), std::memory_order_release);
  return *found;
}

#define EXPORTED extern "C" __attribute__((visibility("default")))

// The name of the kernels in use.
EXPORTED const char* kernels_in_use() { return kernels().name; }

// The name of the kernels at `index` among those that the processor can run, the fastest first, or nullptr.
EXPORTED const char* kernels_that_run(int index) {
  for (const Entry& entry : kEntries)
    if (entry.runs() && index-- == 0) return entry.kernels->name;
  return nullptr;
}

// Selects kernels by name. Returns false, and changes nothing, if the processor cannot run kernels of that name.
EXPORTED bool use_kernels(const char* name) {
  for (const Entry& entry : kEntries)
    if (entry.runs() && !std::strcmp(entry.kernels->name, name)) return chosen.store(entry.kernels, std::memory_order_release), true;
  return false;
}
