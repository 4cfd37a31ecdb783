// Quantises activations like `pallas_kernels.qmatmul.activations`: 32 consecutive inputs become integers and a scale.
#pragma once

#include "kernels.h"
#include "vectors.h"

namespace {

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

// LANES groups, one per lane. integers: at most 127 * 128 with two parts, or 127 with one. sums: the sums of the integers of each half.
struct Groups {
  Ints integers[kGroup];
  Floats scale;
  Ints sums[2];
};

// Quantises LANES groups from g on; groups beyond the last are zeros.
inline void quantize_groups(const Inputs& in, const float* x, int64_t g, float factor, Groups& to) {
  Words values[kGroup];
#pragma GCC unroll 8
  for (int first = 0; first < kGroup; first += LANES) {
    for (int i = 0; i < LANES; i++) {
      const int64_t at = (g + i) * kGroup + first;
      if (g + i >= in.groups) values[first + i] = Words{};
      else if (in.norm) values[first + i] = (Words)(whole<Floats>(x + at) * factor * whole<Floats>(in.norm + at));
      else values[first + i] = whole<Words>(x + at);
    }
    transpose(values + first);
  }
  Ints largest = {};  // without the sign, the bits of floats are integers in the order of the floats, with infinity and NaN last
#pragma GCC unroll 32
  for (int j = 0; j < kGroup; j++) largest = larger(largest, (Ints)values[j] & 0x7FFFFFFF);
  const float most = in.parts == 2 ? 127 * 128 : 127;  // dividing it by less than 2^-110 might overflow
  const Floats top = (Floats)largest, inverse = (Floats)((Ints)(most / top) & (largest > 17 << 23));
  // NaN for a group with NaN or infinity, so that every output of the row is NaN.
  to.scale = (Floats)((Ints)(top * (1 / most)) | (largest >= 0x7F800000));
  to.sums[0] = to.sums[1] = Ints{};
#pragma GCC unroll 32
  for (int j = 0; j < kGroup; j++) {
    to.integers[j] = round_to_int((Floats)values[j] * inverse);
    to.sums[j / 16] += to.integers[j];
  }
}

// Packs four integers into the bytes of a word.
inline Words bytes_of(const Ints* integers) {
  Words word = (Words)integers[3] << 24;
#pragma GCC unroll 4
  for (int i = 0; i < 3; i++) word |= ((Words)integers[i] & 255) << 8 * i;
  return word;
}

// Splits four integers of 15 bits into bytes: each is 128 times its high byte plus its low byte.
inline void split(const Ints* integers, Words& high_bytes, Words& low_bytes) {
  Ints high[4], low[4];
#pragma GCC unroll 4
  for (int i = 0; i < 4; i++) high[i] = (integers[i] + 64) >> 7, low[i] = integers[i] - (high[i] << 7);
  high_bytes = bytes_of(high), low_bytes = bytes_of(low);
}

// Two of the four integers at a position, as 16-bit numbers: those for the even bytes of codes, or for the odd bytes.
inline Words pair_of(const Ints* integers, int position, int odd) {
  return ((Words)integers[4 * position + odd] & 0xFFFF) | (Words)integers[4 * position + odd + 2] << 16;
}

// The even or the odd bytes of words, as 16-bit numbers.
template <bool kSigned>
inline Words pair_of_bytes(Words bytes, int odd) {
  if (!kSigned) return (odd ? bytes >> 8 : bytes) & 0x00FF00FF;
  return (Words)((Shorts)(odd ? bytes : bytes << 8) >> 8);
}

}  // namespace
