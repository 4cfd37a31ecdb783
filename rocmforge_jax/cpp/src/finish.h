// The epilogue of a product: SwiGLU, a bias, a residual.
#pragma once

#include "exponential.h"
#include "kernels.h"
#include "vectors.h"

namespace {

inline Floats silu(Floats x) { return x / (1.0f + exponential(-x)); }

// Applies the epilogue to `count` outputs of row m from column r on, and writes them.
inline void finish(const Job& job, int64_t m, int64_t r, int count, Floats value, Floats up) {
  const int64_t at = m * job.rows + r;
  if (job.weight_count == 2) value = silu(value) * up;
  if (job.bias) value += (Floats)load((const uint32_t*)job.bias + r, count);
  if (job.residual) value += (Floats)load((const uint32_t*)job.residual + at, count);
  if (count == LANES) store(job.out + at, value);
  else __builtin_memcpy(job.out + at, &value, 4 * count);
}

}  // namespace
