// Products of a panel of a weight with a tile of activations, for `skinny_gemm.h`.
//
// A vector holds LANES rows of a weight. 15-bit activations are multiplied with 16-bit codes, two at a time. 8-bit activations are
// multiplied with 8-bit codes, four at a time, if the processor supports VNNI. It requires unsigned activations, so 128 is added to them,
// and the initial value of the sum compensates.
#pragma once

#include "panel.h"
#include "tile.h"

namespace skinny_gemm {
namespace {

// kDepth groups of kPanels panels are multiplied with one tile after the other. They fit into the L1 cache together with the current and
// the prefetched tile.
constexpr int kPanels = 1, kDepth = 8;

// Whether the codes of a panel are bytes.
inline bool panel_of_bytes(const Inputs& in) { return of_bytes(in); }

// What `add_products` needs while it runs: nothing.
struct Session {
  Session(const Inputs&, const Weight&) {}
};

// Packs word `i` of LANES groups.
template <bool kOfBytes>
inline Words word_of(const Ints* integers, int i) {
  if (!kOfBytes) return pair_of(integers, i / 2, i % 2);
  Words word = {};
#pragma GCC unroll 4
  for (int j = 0; j < 4; j++) word |= (Words)(integers[4 * i + j] + 128) << 8 * j;
  return word;
}

// Stores the integers of a row of a tile: 16 or 8 words for each of `count` groups.
template <bool kOfBytes>
void store_integers(const Ints* integers, int count, uint32_t* to, int64_t row_of_tile) {
  constexpr int kWords = kOfBytes ? 8 : 16, kSome = kWords < LANES ? kWords : LANES;
#pragma GCC unroll 4
  for (int first = 0; first < kWords; first += LANES) {
    Words by_group[LANES];
#pragma GCC unroll 16
    for (int i = 0; i < LANES; i++) by_group[i] = i < kSome ? word_of<kOfBytes>(integers, first + i) : Words{};
    transpose(by_group);
    for (int i = 0; i < count; i++)
      __builtin_memcpy(to + i * stride(kOfBytes) + row_of_tile * kWords + first, by_group + i, 4 * kSome);
  }
}

// Adds to totals[m][vector] the products of groups first to last - 1 of a panel with the groups of a tile, which start at x. The tile to
// prefetch is `next` bytes after this one.
template <bool kOfBytes, int kHalves, bool kMinimum>
void add_products(const Panel& panel, int64_t first, int64_t last, const uint32_t* x, int64_t next, Totals totals) {
  constexpr int kWords = kOfBytes ? 8 : 16, kSteps = kWords / kHalves;
  for (int64_t g = first; g < last; g++, x += stride(kOfBytes)) {
    for (int i = 0; i < stride(kOfBytes); i += 16) __builtin_prefetch((const char*)(x + i) + next);
    const float* x_scale = (const float*)x + words_of_group(kOfBytes);
#pragma GCC unroll 2
    for (int h = 0; h < kHalves; h++) {
      Ints sums[kTile][kVectors];
#pragma GCC unroll 8
      for (int m = 0; m < kTile; m++)
#pragma GCC unroll 2
        for (int v = 0; v < kVectors; v++) sums[m][v] = kOfBytes ? panel.start[g][h][v] : Ints{};
#pragma GCC unroll 4
      for (int i = 0; i < kSteps; i++) {
        const Words* codes = panel.codes(g, kOfBytes)[h * kSteps + i];
#pragma GCC unroll 8
        for (int m = 0; m < kTile; m++) {
          const Words values = Words{} + x[m * kWords + h * kSteps + i];
#pragma GCC unroll 2
          for (int v = 0; v < kVectors; v++)
#if BYTE_DOTS
            sums[m][v] = kOfBytes ? dot4(sums[m][v], values, codes[v]) : dot2(sums[m][v], codes[v], values);
#else
            sums[m][v] = dot2(sums[m][v], codes[v], values);
#endif
        }
      }
#pragma GCC unroll 8
      for (int m = 0; m < kTile; m++) {
#pragma GCC unroll 2
        for (int v = 0; v < kVectors; v++) {
          Floats total = totals[m][v] + to_float(sums[m][v]) * panel.scale[g][h][v] * x_scale[m];
          if (kMinimum) total += panel.minimum[g][h][v] * x_scale[(kHalves == 1 ? 3 : 1 + h) * kTile + m];
          totals[m][v] = total;
        }
      }
    }
  }
}

using AddProducts = void (*)(const Panel&, int64_t, int64_t, const uint32_t*, int64_t, Totals);

AddProducts add_products_of(const Weight& w, bool bytes) {
#if BYTE_DOTS
  if (bytes && w.halves == 2) return w.minimum ? add_products<true, 2, true> : add_products<true, 2, false>;
  if (bytes) return w.minimum ? add_products<true, 1, true> : add_products<true, 1, false>;
#endif
  if (w.halves == 2) return w.minimum ? add_products<false, 2, true> : add_products<false, 2, false>;
  return w.minimum ? add_products<false, 1, true> : add_products<false, 1, false>;
}

}  // namespace
}  // namespace skinny_gemm
