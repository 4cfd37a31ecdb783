// Activations as `pallas_kernels.qmatmul.activations` has them: 32 consecutive inputs become integers and a scale.
#pragma once

#include "kernels.h"
#include "vectors.h"

namespace {

// One group. integers: at most 127 * 128, or 127. sums: of the integers of the first half and of the second.
struct Group {
  alignas(64) int32_t integers[kGroup];
  float scale;
  int32_t sums[2];
};

inline float mean_square(const float* x, int64_t count) {
  Floats partial[kGroup / LANES] = {};
  for (int64_t i = 0; i < count; i += kGroup)
    for (int j = 0; j < kGroup / LANES; j++) {
      const Floats values = whole<Floats>(x + i + j * LANES);
      partial[j] += values * values;
    }
  Floats total = {};
  for (Floats part : partial) total += part;
  return sum(total) / count;
}

inline float factor_of_norm(const Inputs& in, const float* x) {
  return in.norm ? 1 / __builtin_sqrtf(mean_square(x, in.groups * kGroup) + in.epsilon) : 1;
}

inline void quantize_group(const Inputs& in, const float* x, int64_t g, float factor, Group& to) {
  Floats values[kGroup / LANES], largest = {}, poison = {};
  for (int j = 0; j < kGroup / LANES; j++) {
    values[j] = whole<Floats>(x + g * kGroup + j * LANES);
    if (in.norm) values[j] = values[j] * factor * whole<Floats>(in.norm + g * kGroup + j * LANES);
    largest = larger(absolute(values[j]), largest);
    poison += values[j] * 0.0f;  // NaN where a value is none or infinite, which then every output is
  }
  float top = 0;
  for (int i = 0; i < LANES; i++) top = largest[i] > top ? largest[i] : top;
  const float most = in.parts == 2 ? 127 * 128 : 127;
  const float inverse = top > 0 ? most / top : 0;
  Ints sums[2] = {};
  for (int j = 0; j < kGroup / LANES; j++) {
    const Ints q = round_to_int(values[j] * inverse);
    store(to.integers + j * LANES, q);
    if (LANES <= 16) sums[j * LANES / 16] += q;
  }
  for (int half = 0; half < 2; half++) {
    int32_t total = 0;
    for (int i = 0; i < LANES; i++) total += sums[half][i];
    to.sums[half] = total;
  }
  to.scale = top / most + sum(poison);
}

}  // namespace
