// Vectors of LANES 32-bit numbers, for the set of instructions that this is compiled for.
//
// Arithmetic uses the vector extension of GCC and Clang. Operations that it lacks are written for AVX-512 with VNNI, AVX2 with and without
// VNNI, SSE2, NEON, and in plain C++. Everything is in an unnamed namespace, as in all headers of `kernels.cc`: code for several sets of
// instructions is linked together, and the linker must not merge functions of the same name.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__) && defined(__AVX512VNNI__)
#define LANES 16
#define ISA "AVX-512 VNNI"
#define BYTE_DOTS 1
#elif defined(__AVXVNNI__)
#define LANES 8
#define ISA "AVX2 VNNI"
#define BYTE_DOTS 1
#elif defined(__AVX2__) && defined(__F16C__) && defined(__FMA__)
#define LANES 8
#define ISA "AVX2"
#define BYTE_DOTS 0
#else
#define LANES 4
#if defined(__aarch64__)
#define ISA "NEON"
#else
#define ISA "plain C++"
#endif
#define BYTE_DOTS 0
#endif

namespace {

typedef uint32_t Words __attribute__((vector_size(4 * LANES)));
typedef int32_t Ints __attribute__((vector_size(4 * LANES)));
typedef float Floats __attribute__((vector_size(4 * LANES)));
typedef int16_t Shorts __attribute__((vector_size(4 * LANES)));
typedef int8_t Bytes __attribute__((vector_size(4 * LANES)));

#if LANES == 16
const Ints kLaneNumbers = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
#elif LANES == 8
const Ints kLaneNumbers = {0, 1, 2, 3, 4, 5, 6, 7};
#else
const Ints kLaneNumbers = {0, 1, 2, 3};
#endif

template <typename Vector>
inline Vector whole(const void* p) {
  Vector vector;
  __builtin_memcpy(&vector, p, sizeof vector);
  return vector;
}

template <typename Vector>
inline void store(void* p, Vector vector) {
  __builtin_memcpy(p, &vector, sizeof vector);
}

inline Floats to_float(Ints a) { return __builtin_convertvector(a, Floats); }

// Rounds floats below 2^22 to the nearest integers.
inline Ints round_to_int(Floats a) { return (Ints)(a + 12582912.0f) - 0x4B400000; }

inline Floats absolute(Floats a) { return (Floats)((Ints)a & 0x7FFFFFFF); }

inline Ints larger(Ints a, Ints b) { return a > b ? a : b; }

// Adds to each lane of `sum` the dot product of two signed 16-bit numbers of `a` and of `b`.
inline Ints dot2(Ints sum, Words a, Words b) {
#if LANES == 16
  return (Ints)_mm512_dpwssd_epi32((__m512i)sum, (__m512i)a, (__m512i)b);
#elif LANES == 8 && BYTE_DOTS
  return (Ints)_mm256_dpwssd_avx_epi32((__m256i)sum, (__m256i)a, (__m256i)b);
#elif LANES == 8
  return sum + (Ints)_mm256_madd_epi16((__m256i)a, (__m256i)b);
#elif defined(__SSE2__)
  return sum + (Ints)_mm_madd_epi16((__m128i)a, (__m128i)b);
#elif defined(__aarch64__)
  const int16x8_t x = (int16x8_t)a, y = (int16x8_t)b;
  return sum + (Ints)vpaddq_s32(vmull_s16(vget_low_s16(x), vget_low_s16(y)), vmull_high_s16(x, y));
#else
  return sum + ((Ints)(a << 16) >> 16) * ((Ints)(b << 16) >> 16) + ((Ints)a >> 16) * ((Ints)b >> 16);
#endif
}

#if BYTE_DOTS
// Adds to each lane of `sum` the dot product of four unsigned bytes of `a` and four signed bytes of `b`.
inline Ints dot4(Ints sum, Words a, Words b) {
#if LANES == 16
  return (Ints)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)a, (__m512i)b);
#else
  return (Ints)_mm256_dpbusd_avx_epi32((__m256i)sum, (__m256i)a, (__m256i)b);
#endif
}
#endif

// Looks up each byte, 0 to 15, in a table of 16 bytes.
inline Words look_up(Words indices, const uint8_t* table) {
#if LANES == 16
  return (Words)_mm512_shuffle_epi8(_mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i*)table)), (__m512i)indices);
#elif LANES == 8
  return (Words)_mm256_shuffle_epi8(_mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i*)table)), (__m256i)indices);
#else
  uint8_t bytes[4 * LANES];
  store(bytes, indices);
  for (uint8_t& byte : bytes) byte = table[byte];
  return whole<Words>(bytes);
#endif
}

// Loads `count` numbers from p and sets the other lanes to zero. Does not read beyond the numbers.
inline Words load(const uint32_t* p, int count) {
#if LANES == 16
  return (Words)_mm512_maskz_loadu_epi32((__mmask16)((1u << count) - 1), p);
#else
  if (count == LANES) return whole<Words>(p);
#endif
#if LANES == 8
  const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  return (Words)_mm256_maskload_epi32((const int*)p, _mm256_cmpgt_epi32(_mm256_set1_epi32(count), lane));
#elif LANES == 4
  Words words = {};
  for (int i = 0; i < count; i++) words[i] = p[i];
  return words;
#endif
}

// Written with intrinsics because GCC converts vectors of narrow numbers one number at a time.
#if LANES == 16
inline Ints widen(__m128i a, int8_t) { return (Ints)_mm512_cvtepi8_epi32(a); }
inline Ints widen(__m128i a, uint8_t) { return (Ints)_mm512_cvtepu8_epi32(a); }
inline Ints widen(__m256i a, uint16_t) { return (Ints)_mm512_cvtepu16_epi32(a); }
#elif LANES == 8
inline Ints widen(__m128i a, int8_t) { return (Ints)_mm256_cvtepi8_epi32(a); }
inline Ints widen(__m128i a, uint8_t) { return (Ints)_mm256_cvtepu8_epi32(a); }
inline Ints widen(__m128i a, uint16_t) { return (Ints)_mm256_cvtepu16_epi32(a); }
#endif

template <typename Narrow>
inline Ints load_narrow(const Narrow* p, int count) {
#if LANES == 16
  const __mmask16 mask = (1u << count) - 1;
  if constexpr (sizeof(Narrow) == 1) return widen(_mm_maskz_loadu_epi8(mask, p), Narrow{});
  else return widen(_mm256_maskz_loadu_epi16(mask, p), Narrow{});
#elif LANES == 8
  if (count == LANES && sizeof(Narrow) == 2) return widen(whole<__m128i>(p), Narrow{});
  if (count == LANES) return widen(_mm_loadl_epi64((const __m128i*)p), Narrow{});
  Narrow some[16] = {};
  for (int i = 0; i < count; i++) some[i] = p[i];
  return widen(whole<__m128i>(some), Narrow{});
#else
  if (count == LANES) return Ints{p[0], p[1], p[2], p[3]};
  Ints all = {};
  for (int i = 0; i < count; i++) all[i] = p[i];
  return all;
#endif
}

// Converts float16 numbers in the lower halves of lanes to float32.
inline Floats half_to_float(Ints half) {
#if LANES == 16
  return (Floats)_mm512_cvtph_ps(_mm512_cvtepi32_epi16((__m512i)half));
#elif LANES == 8
  __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32((__m256i)half, _mm256_setzero_si256()), 0xD8);
  return (Floats)_mm256_cvtph_ps(_mm256_castsi256_si128(packed));
#elif defined(__aarch64__)
  return (Floats)vcvt_f32_f16(vreinterpret_f16_u16(vmovn_u32((uint32x4_t)half)));
#else
  Ints sign = (half & 0x8000) << 16, rest = half & 0x7FFF;
  Floats normal = (Floats)((rest << 13) + (112 << 23)), subnormal = to_float(rest) * 0x1p-24f;
  Ints special = (Ints)((rest << 13) | (255 << 23));
  Ints is_subnormal = rest < 0x400, is_special = rest >= 0x7C00;
  Ints bits = ((Ints)subnormal & is_subnormal) | (special & is_special) | ((Ints)normal & ~is_subnormal & ~is_special);
  return (Floats)(bits | sign);
#endif
}

// Loads `count` float16 numbers as float32; zeros fill the other lanes.
inline Floats load_halves(const uint16_t* p, int count) {
#if LANES == 16
  return (Floats)_mm512_cvtph_ps(_mm256_maskz_loadu_epi16((1u << count) - 1, p));
#elif LANES == 8
  if (count == LANES) return (Floats)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p));
#endif
  return half_to_float(load_narrow(p, count));
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

// Interleaves the lanes of a and b; `first` gets the first half of the result, `second` the second half.
inline void interleave(Words a, Words b, Words* first, Words* second) {
#if LANES == 16
  const __m512i low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
  *first = (Words)_mm512_permutex2var_epi32((__m512i)a, low, (__m512i)b);
  *second = (Words)_mm512_permutex2var_epi32((__m512i)a, _mm512_add_epi32(low, _mm512_set1_epi32(8)), (__m512i)b);
#elif LANES == 8
  __m256i low = _mm256_unpacklo_epi32((__m256i)a, (__m256i)b), high = _mm256_unpackhi_epi32((__m256i)a, (__m256i)b);
  *first = (Words)_mm256_permute2x128_si256(low, high, 0x20), *second = (Words)_mm256_permute2x128_si256(low, high, 0x31);
#else
  *first = Words{a[0], b[0], a[1], b[1]}, *second = Words{a[2], b[2], a[3], b[3]};
#endif
}

// Transposes LANES vectors: each round of interleaving rotates the index (row, lane) of a number by one bit.
inline void transpose(Words* rows) {
#pragma GCC unroll 4
  for (int round = 1; round < LANES; round *= 2) {
    Words turned[LANES];
#pragma GCC unroll 8
    for (int i = 0; i < LANES / 2; i++) interleave(rows[i], rows[i + LANES / 2], &turned[2 * i], &turned[2 * i + 1]);
#pragma GCC unroll 16
    for (int i = 0; i < LANES; i++) rows[i] = turned[i];
  }
}

}  // namespace
