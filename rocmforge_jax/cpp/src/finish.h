// What happens to products on their way out: SwiGLU, a bias, a residual.
#pragma once

#include "kernels.h"
#include "vectors.h"

namespace {

// e^x to 2e-7 of it for |x| < 87, and as at the ends of that range beyond; a NaN stays one.
inline Floats exponential(Floats number) {
  Floats x = number > 87.0f ? Floats{} + 87.0f : number;
  x = x < -87.0f ? Floats{} - 87.0f : x;
  const Floats shifted = x * 1.44269504f + 12582912.0f, n = shifted - 12582912.0f;
  const Floats r = x - n * 0.693145752f - n * 1.42860677e-6f;
  const Floats p = ((((r * 1.3888889e-3f + 8.3333333e-3f) * r + 4.1666667e-2f) * r + 1.6666667e-1f) * r + 0.5f) * r * r + r + 1.0f;
  return number == number ? (Floats)((Ints)p + ((Ints)shifted << 23)) : number;
}

inline Floats silu(Floats x) { return x / (1.0f + exponential(-x)); }

// Writes outputs of row m, `count` of them from r on.
inline void finish(const Job& job, int64_t m, int64_t r, int count, Floats value, Floats up) {
  const int64_t at = m * job.rows + r;
  if (job.weight_count == 2) value = silu(value) * up;
  if (job.bias) value += (Floats)load((const uint32_t*)job.bias + r, count);
  if (job.residual) value += (Floats)load((const uint32_t*)job.residual + at, count);
  if (count == LANES) store(job.out + at, value);
  else __builtin_memcpy(job.out + at, &value, 4 * count);
}

}  // namespace
