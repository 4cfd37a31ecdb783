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

// ggml's half of an unsigned float of 4 + 3 bits: `packing.half_float`.
inline Floats half_float(Ints code) {
  code &= 127;
  const Ints exponent = code >> 3, fraction = code & 7;
  const Ints normal = (exponent + 119) << 23 | fraction << 20, subnormal = (Ints)(to_float(fraction) * 0x1p-10f);
  return (Floats)(((normal & (exponent > 0)) | (subnormal & (exponent == 0))) & (code != 127));
}

// 2^(e - 128): `packing.power_of_two`.
inline Floats power_of_two(Ints e) { return (Floats)(((e - 1) << 23) & (e > 1)); }

// Returns the entry of each of LANES groups; kSpan consecutive groups share an entry.
template <int kSpan>
inline Floats spread(Floats entries) {
  Floats all;
  for (int lane = 0; lane < LANES; lane++) all[lane] = entries[lane / kSpan];
  return all;
}

// Reads d, and m with minima, of `count` groups of a row, at most LANES. With minima, d is the lower half of a word and m the upper half.
template <bool kMinimum, int kSpan>
inline void read_d(const Weight& w, int64_t row, int64_t g, int count, Floats& d, Floats& m) {
  const int64_t first = (row * w.groups + g) / kSpan;
  const int entries = (count + kSpan - 1) / kSpan;
  const uint16_t* halves = (const uint16_t*)w.d + first;
  const uint32_t* words = (const uint32_t*)w.d + first;
#if LANES == 16
  if (kSpan == 8) {  // two entries, converted together
    const __mmask8 mask = (1 << entries) - 1;
    const __m128 found = _mm_cvtph_ps(kMinimum ? _mm_maskz_loadu_epi32(mask, words) : _mm_maskz_loadu_epi16(mask, halves));
    const __m512i second = _mm512_srli_epi32((__m512i)kLaneNumbers, 3);
    const __m512i of_d = kMinimum ? _mm512_slli_epi32(second, 1) : second;
    d = (Floats)_mm512_permutexvar_ps(of_d, _mm512_castps128_ps512(found));
    if (kMinimum) m = (Floats)_mm512_permutexvar_ps(_mm512_or_si512(of_d, _mm512_set1_epi32(1)), _mm512_castps128_ps512(found));
    return;
  }
#endif
#if LANES == 8
  if (kSpan == 8) {
    const __m128 found = _mm_cvtph_ps(_mm_cvtsi32_si128(kMinimum ? *words : *halves));
    d = (Floats)_mm256_broadcastss_ps(found);
    if (kMinimum) m = (Floats)_mm256_broadcastss_ps(_mm_movehdup_ps(found));
    return;
  }
#endif
  Floats of_entries[2];
  if (kMinimum) {
    const Words both = kSpan < LANES ? load(words, entries) : Words{} + *words;
    of_entries[0] = half_to_float((Ints)(both & 0xFFFF)), of_entries[1] = half_to_float((Ints)(both >> 16));
  } else {
    of_entries[0] = kSpan < LANES ? load_halves(halves, entries) : half_to_float(Ints{} + *halves);
  }
  const bool is_spread = kSpan == 1 || kSpan >= LANES;
  d = is_spread ? of_entries[0] : spread<kSpan>(of_entries[0]);
  if (kMinimum) m = is_spread ? of_entries[1] : spread<kSpan>(of_entries[1]);
}

// The same for any span.
template <bool kMinimum>
inline void read_any_d(const Weight& w, int64_t row, int64_t g, int count, Floats& d, Floats& m) {
  Ints of_d = {}, of_m = {};
  for (int lane = 0; lane < count; lane++) {
    const int64_t entry = (row * w.groups + g + lane) / w.span;
    const uint32_t bits = kMinimum ? ((const uint32_t*)w.d)[entry] : ((const uint16_t*)w.d)[entry];
    of_d[lane] = bits & 0xFFFF, of_m[lane] = bits >> 16;
  }
  d = half_to_float(of_d), m = half_to_float(of_m);
}

// Scales and minima of LANES groups of a row, for each half of a group. Without a scale for each half, the first is of the whole.
struct Scales {
  Floats scale[2], minimum[2];
};

// Computes the scales of `count` groups of one half, from d and m and what is stored for each group from index `at` on.
template <Scale kKind, bool kMinimum>
inline void compute_scales(const Weight& w, int64_t at, int count, Floats d, Floats m, Floats& scale, Floats& minimum) {
  constexpr int kBits = kKind == kNibbles ? 4 : 8;
  if constexpr (kKind == kD) {
    scale = d, minimum = m;
  } else if constexpr (kKind == kInt8) {
    scale = d * to_float(load_narrow((const int8_t*)w.scale + at, count));
  } else if constexpr (kKind == kE8M0) {
    scale = power_of_two(load_narrow(w.scale + at, count));
  } else if constexpr (kKind == kE4M3) {
    scale = half_float(load_narrow(w.scale + at, count));
  } else {  // small multiples of d and m
    const Ints both = kKind == kNibbles ? load_narrow(w.scale + at, count) : load_narrow((const uint16_t*)w.scale + at, count);
    scale = d * to_float(kMinimum ? both & ((1 << kBits) - 1) : both), minimum = -m * to_float(both >> kBits);
  }
}

// Reads the scales of `count` groups of a row from g on, at most LANES; zeros fill the other lanes. g is a multiple of LANES.
template <typename F>
inline Scales read_scales(const Weight& w, int64_t row, int64_t g, int count) {
  Scales to;
  Floats d = {}, m = {};
  if constexpr (F::kKind == kAnyScale) {
    if (w.d) read_any_d<F::kMinimum>(w, row, g, count, d, m);
  } else if constexpr (F::kKind != kE8M0 && F::kKind != kE4M3) {
    read_d<F::kMinimum, F::kSpan>(w, row, g, count, d, m);
  }
#pragma GCC unroll 2
  for (int half = 0; half < F::kHalves; half++) {
    const int64_t at = (row * F::kHalves + half) * w.groups + g;
    Floats &scale = to.scale[half], &minimum = to.minimum[half];
    if constexpr (F::kKind != kAnyScale) {
      compute_scales<F::kKind, F::kMinimum>(w, at, count, d, m, scale, minimum);
      continue;
    }
    switch (w.scale_kind) {
      case kD: compute_scales<kD, F::kMinimum>(w, at, count, d, m, scale, minimum); break;
      case kInt8: compute_scales<kInt8, F::kMinimum>(w, at, count, d, m, scale, minimum); break;
      case kNibbles: compute_scales<kNibbles, F::kMinimum>(w, at, count, d, m, scale, minimum); break;
      case kBytes: compute_scales<kBytes, F::kMinimum>(w, at, count, d, m, scale, minimum); break;
      case kE8M0: compute_scales<kE8M0, F::kMinimum>(w, at, count, d, m, scale, minimum); break;
      default: compute_scales<kE4M3, F::kMinimum>(w, at, count, d, m, scale, minimum);
    }
  }
  return to;
}

}  // namespace
