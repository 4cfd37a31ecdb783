// Vectors of LANES 32-bit numbers: what the products need, on the processor that this is compiled for.
//
// Arithmetic is GCC's and Clang's vector extension; what that lacks is written for AVX-512 with VNNI, for AVX2, and plainly.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__) && defined(__AVX512VNNI__)
#define LANES 16
#define ISA "AVX-512 VNNI"
#elif defined(__AVX2__) && defined(__F16C__)
#define LANES 8
#define ISA "AVX2"
#else
#define LANES 4
#define ISA "plain C++"
#endif

typedef uint32_t Words __attribute__((vector_size(4 * LANES)));
typedef int32_t Ints __attribute__((vector_size(4 * LANES)));
typedef float Floats __attribute__((vector_size(4 * LANES)));

inline Floats to_float(Ints a) { return __builtin_convertvector(a, Floats); }

// The sum of the products of four unsigned bytes of `codes` and four signed ones of `x`, added to each lane of `sum`.
// wide: bytes of `codes` may be above 127.
template <bool wide>
inline Ints dot4(Ints sum, Words codes, Words x) {
#if LANES == 16
  return (Ints)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)codes, (__m512i)x);
#elif LANES == 8 && defined(__AVXVNNI__)
  return (Ints)_mm256_dpbusd_avx_epi32((__m256i)sum, (__m256i)codes, (__m256i)x);
#elif LANES == 8
  if constexpr (!wide) {  // no sum of two products leaves 16 bits
    __m256i pairs = _mm256_maddubs_epi16((__m256i)codes, (__m256i)x);
    return sum + (Ints)_mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
  }
  __m256i even = _mm256_and_si256((__m256i)codes, _mm256_set1_epi16(255)), odd = _mm256_srli_epi16((__m256i)codes, 8);
  __m256i x_even = _mm256_srai_epi16(_mm256_slli_epi16((__m256i)x, 8), 8), x_odd = _mm256_srai_epi16((__m256i)x, 8);
  return sum + (Ints)_mm256_madd_epi16(even, x_even) + (Ints)_mm256_madd_epi16(odd, x_odd);
#else
  for (int shift = 0; shift < 32; shift += 8)
    sum += (Ints)((codes >> shift) & 255) * ((Ints)(x << (24 - shift)) >> 24);
  return sum;
#endif
}

// The entry of a table of 16 bytes for each byte, 0 to 15.
inline Words look_up(Words indices, const uint8_t* table) {
#if LANES == 16
  return (Words)_mm512_shuffle_epi8(_mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i*)table)), (__m512i)indices);
#elif LANES == 8
  return (Words)_mm256_shuffle_epi8(_mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i*)table)), (__m256i)indices);
#else
  uint8_t bytes[4 * LANES];
  std::memcpy(bytes, &indices, sizeof bytes);
  for (uint8_t& byte : bytes) byte = table[byte];
  std::memcpy(&indices, bytes, sizeof bytes);
  return indices;
#endif
}

// The first `count` numbers from p on, zeros behind them. Nothing behind them is read.
inline Words load(const uint32_t* p, int count) {
  Words words = {};
#if LANES == 16
  words = (Words)_mm512_maskz_loadu_epi32((__mmask16)((1u << count) - 1), p);
#else
  std::memcpy(&words, p, count == LANES ? sizeof words : 4 * count);
#endif
  return words;
}

template <typename Narrow>
inline Ints load_narrow(const Narrow* p, int count) {
  typedef Narrow Vector __attribute__((vector_size(sizeof(Narrow) * LANES)));
  Vector narrow = {};
#if LANES == 16
  __mmask16 mask = (1u << count) - 1;
  if constexpr (sizeof(Narrow) == 1) narrow = (Vector)_mm_maskz_loadu_epi8(mask, p);
  else narrow = (Vector)_mm256_maskz_loadu_epi16(mask, p);
#else
  std::memcpy(&narrow, p, count == LANES ? sizeof narrow : sizeof(Narrow) * count);
#endif
  return __builtin_convertvector(narrow, Ints);
}

// float16 numbers in the lower halves of lanes, as float32.
inline Floats half_to_float(Ints half) {
#if LANES == 16
  return (Floats)_mm512_cvtph_ps(_mm512_cvtepi32_epi16((__m512i)half));
#elif LANES == 8
  __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32((__m256i)half, _mm256_setzero_si256()), 0xD8);
  return (Floats)_mm256_cvtph_ps(_mm256_castsi256_si128(packed));
#else
  Ints sign = (half & 0x8000) << 16, rest = half & 0x7FFF;
  Floats normal = (Floats)((rest << 13) + (112 << 23)), subnormal = to_float(rest) * 0x1p-24f;
  Ints special = (Ints)((rest << 13) | (255 << 23));
  Ints is_subnormal = rest < 0x400, is_special = rest >= 0x7C00;
  Ints bits = ((Ints)subnormal & is_subnormal) | (special & is_special) | ((Ints)normal & ~is_subnormal & ~is_special);
  return (Floats)(bits | sign);
#endif
}

inline float sum(Floats a) {
#if LANES == 16
  return _mm512_reduce_add_ps((__m512)a);
#else
  float total = 0;
  for (int i = 0; i < LANES; i++) total += a[i];
  return total;
#endif
}
