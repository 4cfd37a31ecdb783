// Steps of recurrences whose heads each keep a matrix [rows, columns]: the memory is read once and written once.
#pragma once

#include "kernels.h"
#include "vectors.h"

namespace recurrence {
namespace {

// Vectors of a row that are computed together. Their columns of a memory of 128 rows stay in the L1 cache.
constexpr int kVectors = 4;

inline Floats load_some(const float* p, int count) { return count == LANES ? whole<Floats>(p) : (Floats)load((const uint32_t*)p, count); }

inline void store_some(float* p, Floats value, int count) {
  if (count == LANES) store(p, value);
  else __builtin_memcpy(p, &value, 4 * count);
}

// The delta rule for `vectors` vectors of columns from `first` on; the last vector has `count` columns.
template <int vectors>
void delta_columns(const DeltaHead& of, int64_t first, int count, float overlap) {
  const auto lanes = [&](int i) { return i == vectors - 1 ? count : LANES; };
  Floats of_key[vectors] = {}, of_query[vectors] = {};
  for (int64_t h = 0; h < of.rows; h++)
#pragma GCC unroll 4
    for (int i = 0; i < vectors; i++) {
      const Floats held = load_some(of.memory + h * of.columns + first + i * LANES, lanes(i));
      of_key[i] += of.k[h] * held, of_query[i] += of.q[h] * held;
    }
  Floats change[vectors];
#pragma GCC unroll 4
  for (int i = 0; i < vectors; i++) {
    const int64_t at = first + i * LANES;
    change[i] = of.beta * (load_some(of.v + at, lanes(i)) - of.decay * of_key[i]);
    store_some(of.out + at, of.decay * of_query[i] + overlap * change[i], lanes(i));
  }
  for (int64_t h = 0; h < of.rows; h++)
#pragma GCC unroll 4
    for (int i = 0; i < vectors; i++) {
      const int64_t at = h * of.columns + first + i * LANES;
      store_some(of.new_memory + at, of.decay * load_some(of.memory + at, lanes(i)) + of.k[h] * change[i], lanes(i));
    }
}

// memory *= decay; memory += k (beta (v - k^T memory))^T; out = q^T memory.
void delta(const DeltaHead& of) {
  float overlap = 0;
  for (int64_t h = 0; h < of.rows; h++) overlap += of.q[h] * of.k[h];
  int64_t first = 0;
  for (; first + kVectors * LANES <= of.columns; first += kVectors * LANES) delta_columns<kVectors>(of, first, LANES, overlap);
  for (; first < of.columns; first += LANES)
    delta_columns<1>(of, first, of.columns - first < LANES ? (int)(of.columns - first) : LANES, overlap);
}

// memory = decay memory + x b^T; out = memory c.
void scan(const ScanHead& of) {
  for (int64_t h = 0; h < of.rows; h++) {
    Floats sums = {};
    for (int64_t w = 0; w < of.columns; w += LANES) {
      const int64_t at = h * of.columns + w;
      const int count = of.columns - w < LANES ? (int)(of.columns - w) : LANES;
      const Floats now = of.decay * load_some(of.memory + at, count) + of.x[h] * load_some(of.b + w, count);
      store_some(of.new_memory + at, now, count);
      sums += now * load_some(of.c + w, count);
    }
    of.out[h] = sum(sums);
  }
}

}  // namespace
}  // namespace recurrence
