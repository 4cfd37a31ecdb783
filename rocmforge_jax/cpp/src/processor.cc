// The compiled kernels that this processor can run, and the choice among them.

#include "processor.h"

#include <atomic>
#include <cstring>

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(HAS_amx) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

// `units.py` defines the macro HAS_<name> for each table that is compiled.
extern "C" const Kernels kernels_plain, kernels_avx2, kernels_avxvnni, kernels_avx512;
extern "C" const Way skinny_gemm_amx;

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

#if defined(HAS_amx)
// Linux lets a process use tiles only after a request, which it may refuse. The permission holds for all threads.
bool may_use_tiles() {
#if defined(__linux__)
  constexpr int kRequestPermission = 0x1023, kTiles = 18;
  static const bool permitted = syscall(SYS_arch_prctl, kRequestPermission, kTiles) == 0;
  return permitted;
#else
  return false;
#endif
}

bool has_amx() {
  unsigned a, b, c, d;
  const bool tiles_of_bytes = __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d >> 24 & 1) && (d >> 25 & 1);
  return tiles_of_bytes && has_avx512() && may_use_tiles();
}

Kernels with_amx() {
  Kernels kernels = kernels_avx512;
  kernels.name = "AMX";
  kernels.skinny_gemm = skinny_gemm_amx;
  return kernels;
}

const Kernels kernels_amx = with_amx();
#endif
#endif

struct Entry {
  const Kernels* kernels;
  bool (*runs)();
};

// In descending order of speed.
const Entry kEntries[] = {
#if defined(HAS_amx)
    {&kernels_amx, has_amx},
#endif
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

// The default prefetch, which was among the fastest on each processor that was measured (docs/kernels.md).
constexpr Prefetch kPrefetch = {2048, 16384};

// The prefetch in use as one number: the two distances, with l1 in the upper half. -1: not chosen yet.
std::atomic<int64_t> fetch{-1};

int64_t packed(Prefetch how) { return how.l1 << 32 | how.l2; }

}  // namespace

const Kernels& kernels() {
  const Kernels* found = chosen.load(std::memory_order_acquire);
  if (!found) chosen.store(found = quickest(), std::memory_order_release);
  return *found;
}

Prefetch prefetch() {
  int64_t found = fetch.load(std::memory_order_relaxed);
  if (found < 0) fetch.store(found = packed(kPrefetch), std::memory_order_relaxed);
  return {found >> 32, found & 0xFFFFFFFF};
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

// Writes the two distances of the prefetch in use.
EXPORTED void get_prefetch(int64_t* l1, int64_t* l2) {
  const Prefetch how = prefetch();
  *l1 = how.l1, *l2 = how.l2;
}

// Sets the prefetch for all products from now on. Distances have at most 31 bits; a negative one restores the default.
EXPORTED void set_prefetch(int64_t l1, int64_t l2) { fetch.store(l1 < 0 ? -1 : packed({l1, l2})); }
