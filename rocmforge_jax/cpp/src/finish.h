// The epilogue of a product: scales, biases, an activation function, a residual.
#pragma once

#include "exponential.h"
#include "kernels.h"
#include "vectors.h"

namespace {

// x * sigmoid(z).
inline Floats times_sigmoid(Floats x, Floats z) { return x / (1.0f + exponential(-z)); }

// min(x, limit), max(x, limit). NaN stays NaN.
inline Floats at_most(Floats x, float limit) { return x > limit ? Floats{} + limit : x; }
inline Floats at_least(Floats x, float limit) { return x < limit ? Floats{} + limit : x; }

// f(x), as `pallas_kernels.activation_functions` defines it.
inline Floats activate(const Function& function, Floats x) {
  switch (function.name) {
    case kSilu: return times_sigmoid(x, x);
    case kGelu: return times_sigmoid(x, x * (1.0f + 0.044715f * x * x) * 1.5957691f);
    case kRelu2: x = at_least(x, 0.0f); return x * x;
    default: return x;
  }
}

// f(gate) * up.
inline Floats gated(const Function& function, Floats gate, Floats up) {
  if (function.name != kSwigluOai) return activate(function, gate) * up;
  gate = at_most(gate, function.limit), up = at_least(at_most(up, function.limit), -function.limit);
  return times_sigmoid(gate, gate * function.alpha) * (up + 1.0f);
}

// Applies the scale and the bias of weight i.
inline Floats scaled_and_biased(const Job& job, int i, int64_t r, int count, Floats value) {
  if (job.scales[i]) value *= *job.scales[i];
  if (job.biases[i]) value += (Floats)load((const uint32_t*)job.biases[i] + r, count);
  return value;
}

// Applies the epilogue to `count` outputs of row m from column r on, and writes them.
inline void finish(const Job& job, int64_t m, int64_t r, int count, Floats value, Floats up) {
  const int64_t at = (job.places ? job.places[m] : m) * job.rows + r;
  value = scaled_and_biased(job, 0, r, count, value);
  if (job.weight_count == 2) value = gated(job.function, value, scaled_and_biased(job, 1, r, count, up));
  else value = activate(job.function, value);
  if (job.residual) value += (Floats)load((const uint32_t*)job.residual + at, count);
  if (count == LANES) store(job.out + at, value);
  else __builtin_memcpy(job.out + at, &value, 4 * count);
}

}  // namespace
