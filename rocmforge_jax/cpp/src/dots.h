// Quantised activations for `gemv.h`, and their dot products with codes.
#pragma once

#include "quantize.h"
#include "weights.h"

namespace gemv {
namespace {

// Without instructions that multiply bytes, activations are 16-bit integers.
constexpr bool kPairs = LANES == 4;

// LANES groups of a row of activations: integers by position, and for each group a scale and sums. The sums are those of the integers of
// the first half, of the second half and of both, unscaled and scaled. With two parts, an integer is 128 times a high byte plus a low byte.
// With kPairs, integers have 16 bits, and the integers for even bytes of codes come before the integers for odd bytes.
template <int kParts>
struct Block {
  Words words[kPairs ? 2 : kParts][kPositions];
  Floats scale;
  Ints sums[3];
  Floats scaled_sums[3];
};

// Adds the dot product of codes and activations at kCount positions from `first` on to `start`. With VNNI, codes are unsigned. Otherwise,
// they are signed if kSigned is true.
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
  // An instruction adds two products of bytes in 16 bits. kFit such sums cannot overflow, because activations are at most 127.
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
