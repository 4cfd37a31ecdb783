// A vector of activations for `gemv.h`, and its products with codes.
#pragma once

#include "quantize.h"
#include "weights.h"

namespace gemv {
namespace {

// Whether activations are numbers of 16 bits: where the processor cannot multiply bytes.
constexpr bool kPairs = LANES == 4;

// A vector of groups of a row of activations: its integers by position; and of each group the scale, and the sums of the integers of each
// half and of all, as they are and times the scale. Integers are bytes, where there are two parts 128 * a high one + a low one; or they
// are numbers of 16 bits, those of even bytes of codes before those of odd ones.
template <int kParts>
struct Block {
  Words words[kPairs ? 2 : kParts][kPositions];
  Floats scale;
  Ints sums[3];
  Floats scaled_sums[3];
};

// The products of the codes of a weight with the integers of activations, at kCount positions from `first` on, added up and to `start`.
// Codes are signed only where kSigned says so and bytes are not multiplied by VNNI, which takes unsigned ones.
template <int kBits, bool kSigned, int kParts, int kCount>
inline Ints dots(Ints start, const Words* codes, const Block<kParts>& x, int first) {
#if BYTE_DOTS
  Ints high = {};
#pragma GCC unroll 8
  for (int p = first; p < first + kCount; p++) {
    if (kParts == 2) high = dot4(high, codes[p], x.words[0][p]);
    start = dot4(start, codes[p], x.words[kParts - 1][p]);
  }
  return kParts == 2 ? (high << 7) + start : start;
#elif LANES == 8
  // Products of two bytes are added up in 16 bits: at first so many as fit, 127 being the largest byte of activations.
  constexpr int kMost = (1 << kBits) - 1, kFit = kSigned ? 1 : 32767 / (kMost * 2 * 127), kRun = kFit < kCount ? kFit : kCount;
  Ints parts[2] = {};
#pragma GCC unroll 2
  for (int part = 0; part < kParts; part++)
#pragma GCC unroll 8
    for (int p = first; p < first + kCount; p += kRun) {
      Shorts run = {};
#pragma GCC unroll 8
      for (int i = p; i < p + kRun; i++) {
        const __m256i code = (__m256i)codes[i], value = (__m256i)x.words[part][i];
        run += (Shorts)(kSigned ? _mm256_maddubs_epi16(_mm256_abs_epi8(code), _mm256_sign_epi8(value, code))
                                : _mm256_maddubs_epi16(code, value));
      }
      parts[part] += (Ints)_mm256_madd_epi16((__m256i)run, _mm256_set1_epi16(1));
    }
  return start + (kParts == 2 ? (parts[0] << 7) + parts[1] : parts[0]);
#else
#pragma GCC unroll 8
  for (int p = first; p < first + kCount; p++)
    for (int odd = 0; odd < 2; odd++) start = dot2(start, pair_of_bytes<kSigned>(codes[p], odd), x.words[odd * kPairs][p]);
  return start;
#endif
}

}  // namespace
}  // namespace gemv
