// Reads codes and scales of packed weights, LANES groups of a row at a time.
#pragma once

#include "forms.h"
#include "kernels.h"
#include "vectors.h"

namespace {

constexpr int kPositions = 8;

// Turns the words of groups into the words of their positions, like `packing.position_words`.
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
      const int in_nibble = part == 8 ? 1 : 4 / part;
      const int word = part == 8 ? p : p % 4 / in_nibble, shift = part == 8 ? 0 : p / 4 * 4 + p % in_nibble * part;
      const int left = first - shift;  // one shift moves the bits to their place in the code
      const Words bits = words[first + word];
      positions[p] |= (left > 0 ? bits << left : bits >> -left) & mask << first;
    }
    first += part;
  }
}

// Scales and minima of consecutive groups of a row; zeros fill the vector of the last group.
constexpr int64_t kChunk = 128;
struct Scales {
  alignas(64) float scale[2][kChunk], minimum[2][kChunk];
};

// ggml's half of an unsigned float of 4 + 3 bits: `packing.half_float`.
inline Floats half_float(Ints code) {
  code &= 127;
  const Ints exponent = code >> 3, fraction = code & 7;
  const Ints normal = (exponent + 119) << 23 | fraction << 20, subnormal = (Ints)(to_float(fraction) * 0x1p-10f);
  return (Floats)(((normal & (exponent > 0)) | (subnormal & (exponent == 0))) & (code != 127));
}

// 2^(e - 128): `packing.power_of_two`.
inline Floats power_of_two(Ints e) { return (Floats)(((e - 1) << 23) & (e > 1)); }

// Reads d or m of `count` entries. With minima, d is the lower half of a word and m the upper half.
template <bool kMinimum>
inline void read_halves(const Weight& w, int64_t first, int64_t count, int shift, float* to) {
  for (int64_t i = 0; i < count; i += LANES) {
    const int some = count - i < LANES ? count - i : LANES;
    const Ints bits = kMinimum ? (Ints)((load((const uint32_t*)w.d + first + i, some) >> shift) & 0xFFFF)
                               : load_narrow((const uint16_t*)w.d + first + i, some);
    store(to + i, half_to_float(bits));
  }
}

// Returns the entry of each of LANES groups from i on; `span` consecutive groups share an entry.
inline Floats shared(const float* entries, int64_t i, int64_t span) {
#if LANES == 16
  if (span == 8) {
    const __m256 first = _mm256_broadcast_ss(entries + i / 8), second = _mm256_broadcast_ss(entries + i / 8 + 1);
    return (Floats)_mm512_insertf32x8(_mm512_castps256_ps512(first), second, 1);
  }
#else
  if (span == 8) return Floats{} + entries[i / 8];
#endif
  Floats all;
  for (int64_t lane = 0; lane < LANES; lane++) all[lane] = entries[(i + lane) / span];
  return all;
}

// Computes scales and minima that are small multiples of d and m; each multiple has kBits bits.
template <bool kMinimum, int kBits, typename Small>
inline void multiples(const float* d, const float* m, const Small* small, int64_t count, int64_t span, float* scale, float* minimum) {
  for (int64_t i = 0; i < count; i += LANES) {
    const Ints both = load_narrow(small + i, count - i < LANES ? count - i : LANES);
    store(scale + i, shared(d, i, span) * to_float(kMinimum ? both & ((1 << kBits) - 1) : both));
    if (kMinimum) store(minimum + i, -shared(m, i, span) * to_float(both >> kBits));
  }
}

// Reads the scales of `count` groups from g on, at most kChunk; g is a multiple of kChunk.
template <bool kMinimum>
void read_scales(const Weight& w, int64_t row, int64_t g, int64_t count, Scales& to) {
  const int64_t first = (row * w.groups + g) / w.span, entries = (count + w.span - 1) / w.span;
  alignas(64) float own_d[kChunk], own_m[kChunk];
  const bool alone = w.scale_kind == kD && w.span == 1;
  float *d = alone ? to.scale[0] : own_d, *m = alone ? to.minimum[0] : own_m;
  if (w.d) {
    read_halves<kMinimum>(w, first, entries, 0, d);
    if (kMinimum) read_halves<kMinimum>(w, first, entries, 16, m);
  }
  if (alone) return;
  for (int half = 0; half < w.halves; half++) {
    const int64_t at = (row * w.halves + half) * w.groups + g;
    float *scale = to.scale[half], *minimum = to.minimum[half];
    switch (w.scale_kind) {
      case kInt8: multiples<false, 8>(d, m, (const int8_t*)w.scale + at, count, w.span, scale, minimum); break;
      case kNibbles: multiples<kMinimum, 4>(d, m, w.scale + at, count, w.span, scale, minimum); break;
      case kBytes: multiples<kMinimum, 8>(d, m, (const uint16_t*)w.scale + at, count, w.span, scale, minimum); break;
      default:
        for (int64_t i = 0; i < count; i += LANES) {
          if (w.scale_kind == kD) {
            store(scale + i, shared(d, i, w.span));
            continue;
          }
          const Ints code = load_narrow(w.scale + at + i, count - i < LANES ? count - i : LANES);
          store(scale + i, w.scale_kind == kE8M0 ? power_of_two(code) : half_float(code));
        }
    }
  }
}

// Returns Function<kBits, kTable>::value for the codes of `w`, or nullptr if no form has such codes.
template <template <int, bool> class Function, typename Value, typename... Each>
Value by_codes(const Weight& w, List<Each...>) {
  Value found = nullptr;
  ((w.bits == Each::kBits && (bool)w.has_table == Each::kTable && (found = Function<Each::kBits, Each::kTable>::value)), ...);
  return found;
}

}  // namespace
