// Codes and scales of packed weights, a vector of groups of one row at a time.
#pragma once

#include "kernels.h"
#include "vectors.h"

namespace {

constexpr int kPositions = 8;

// Words of groups -> words of their positions, as `packing.position_words`.
template <int kBits>
inline void unpack(const Words* words, Words* positions) {
  int first = 0;
#pragma GCC unroll 8
  for (int p = 0; p < kPositions; p++) positions[p] = Words{};
#pragma GCC unroll 4
  for (int part = 8; part; part >>= 1) {
    if (!(kBits & part)) continue;
    const uint32_t mask = ((1u << part) - 1) * 0x01010101u;
#pragma GCC unroll 8
    for (int p = 0; p < kPositions; p++) {
      const int fields = 8 / part;
      const int word = part == 4 ? p % 4 : p / fields, shift = part == 4 ? p / 4 * 4 : p % fields * part;
      const int left = first - shift;  // straight to where the code has these bits
      const Words bits = words[first + word];
      positions[p] |= (left > 0 ? bits << left : bits >> -left) & mask << first;
    }
    first += part;
  }
}

// ggml's half of an unsigned float of 4 + 3 bits: `packing.half_float`.
inline float half_float(uint8_t code) {
  code &= 127;
  if (code == 127) return 0;
  return code >> 3 ? __builtin_ldexpf(8 + (code & 7), (code >> 3) - 11) : __builtin_ldexpf(code & 7, -10);
}

// Scales of some groups that follow one another in a row, and their minima; zeros from the last group to the end of its vector.
constexpr int64_t kChunk = 128;
struct Scales {
  alignas(64) float scale[2][kChunk], minimum[2][kChunk];
};

// d, or m, of `count` entries: the lower or the upper half of words where there are both.
inline void halves(const Weight& w, int64_t first, int64_t count, int shift, float* to) {
  for (int64_t i = 0; i < count; i += LANES) {
    const int some = count - i < LANES ? count - i : LANES;
    const Ints bits = w.minimum ? (Ints)((load((const uint32_t*)w.d + first + i, some) >> shift) & 0xFFFF)
                                : load_narrow((const uint16_t*)w.d + first + i, some);
    store(to + i, half_to_float(bits));
  }
}

// to[i] = shared[i / span] * factor * part(small[i]), for whole spans.
template <typename Small, typename Part>
inline void times_shared(const float* shared, float factor, const Small* small, int64_t count, int64_t span, float* to, Part part) {
  if (span == 8) {
    for (int64_t i = 0; i < count; i += 8) {
      const float d = shared[i / 8] * factor;
#pragma GCC unroll 8
      for (int64_t j = 0; j < 8; j++) to[i + j] = d * (float)part(small[i + j]);
    }
    return;
  }
  for (int64_t i = 0; i < count; i++) to[i] = shared[i / span] * factor * (float)part(small[i]);
}

// Of `count` groups from g on, at most kChunk; g is a multiple of kChunk. kMinimum: whether there are minima.
template <bool kMinimum>
void read_scales(const Weight& w, int64_t row, int64_t g, int64_t count, Scales& to) {
  const int64_t first = (row * w.groups + g) / w.span, entries = (count + w.span - 1) / w.span;
  const int64_t end = (count + LANES - 1) / LANES * LANES;
  alignas(64) float d[kChunk], m[kChunk];
  if (w.scale_kind == kD && w.span == 1) {
    halves(w, first, count, 0, to.scale[0]);
    if (kMinimum) halves(w, first, count, 16, to.minimum[0]);
  } else if (w.scale_kind != kE8M0 && w.scale_kind != kE4M3) {
    halves(w, first, entries, 0, d);
    if (kMinimum) halves(w, first, entries, 16, m);
  }
  for (int half = 0; half < w.halves; half++) {
    const uint8_t* small = w.scale + ((row * w.halves + half) * w.groups + g) * (w.scale_kind == kBytes ? 2 : 1);
    float *scale = to.scale[half], *minimum = to.minimum[half];
    switch (w.scale_kind) {
      case kD:
        if (w.span == 1) continue;
        for (int64_t i = 0; i < count; i++) scale[i] = d[i / w.span];
        break;
      case kE8M0:
        for (int64_t i = 0; i < count; i++) {
          const uint32_t bits = small[i] > 1 ? (uint32_t)(small[i] - 1) << 23 : 0;
          __builtin_memcpy(scale + i, &bits, 4);
        }
        break;
      case kE4M3:
        for (int64_t i = 0; i < count; i++) scale[i] = half_float(small[i]);
        break;
      case kInt8:
        times_shared(d, 1, (const int8_t*)small, count, w.span, scale, [](int8_t s) { return s; });
        break;
      case kNibbles:
        times_shared(d, 1, small, count, w.span, scale, [](uint8_t s) { return s & 15; });
        if (kMinimum) times_shared(m, -1, small, count, w.span, minimum, [](uint8_t s) { return s >> 4; });
        break;
      case kBytes:
        times_shared(d, 1, (const uint16_t*)small, count, w.span, scale, [](uint16_t s) { return s & 255; });
        if (kMinimum) times_shared(m, -1, (const uint16_t*)small, count, w.span, minimum, [](uint16_t s) { return s >> 8; });
    }
    for (int64_t i = count; i < end; i++) scale[i] = minimum[i] = 0;
  }
}

// Codes of a packing for which there is code: Function<kBits, kTable>::value for `w`, or nullptr.
template <template <int, bool> class Function, typename Value>
Value by_codes(const Weight& w) {
  if (w.has_table) return w.bits == 4 ? Function<4, true>::value : nullptr;
  switch (w.bits) {
    case 1: return Function<1, false>::value;
    case 2: return Function<2, false>::value;
    case 3: return Function<3, false>::value;
    case 4: return Function<4, false>::value;
    case 5: return Function<5, false>::value;
    case 6: return Function<6, false>::value;
    case 8: return Function<8, false>::value;
  }
  return nullptr;
}

}  // namespace
