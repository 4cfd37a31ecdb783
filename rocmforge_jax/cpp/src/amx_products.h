// Products of a panel of a weight with a tile of activations on AMX, for `skinny_gemm.h`.
//
// An instruction of AMX multiplies the bytes of a group: the rows of a tile of activations with LANES rows of a weight. 15-bit activations
// consist of a high byte and a low byte, which are two rows of the instruction. The sums of a group are stored in memory and then scaled,
// with the same operations in the same order as in `tile_products.h`, so that results are equal.
#pragma once

#include "panel.h"
#include "tile.h"

namespace skinny_gemm {
namespace {

// kDepth groups of kPanels panels are multiplied with one tile after the other.
constexpr int kPanels = 2, kDepth = kPanel;

inline bool panel_of_bytes(const Inputs&) { return true; }

// Stores the integers of a row of a tile for each of `count` groups: [part][kTile][8 words], the high bytes first.
template <bool kOfBytes>
void store_integers(const Ints* integers, int count, uint32_t* to, int64_t row_of_tile) {
  Words by_group[LANES];
#pragma GCC unroll 8
  for (int p = 0; p < kPositions; p++)
    if (kOfBytes) by_group[p] = bytes_of(integers + 4 * p), by_group[kPositions + p] = Words{};
    else split(integers + 4 * p, by_group[p], by_group[kPositions + p]);
  transpose(by_group);
  for (int i = 0; i < count; i++)
    for (int part = 0; part < (kOfBytes ? 1 : 2); part++)
      __builtin_memcpy(to + i * stride(kOfBytes) + (part * kTile + row_of_tile) * 8, (const uint32_t*)&by_group[i] + part * 8, 32);
}

// The configuration of the tiles. 0 to 3: sums; 4 and 5: activations; 6 and 7: codes.
struct alignas(64) Configuration {
  uint8_t palette = 1, start = 0, reserved[14] = {};
  uint16_t bytes_per_row[16] = {};
  uint8_t rows[16] = {};

  constexpr Configuration(int parts, int halves) {
    for (int i = 0; i < 8; i++) {
      bytes_per_row[i] = i == 4 || i == 5 ? 32 / halves : 64;
      rows[i] = i < 6 ? parts * kTile : kPositions / halves;
    }
  }
};

// Configures the tiles of this thread, and frees them at the end: a configured thread takes longer to switch to another.
struct Session {
  Session(const Inputs& in, const Weight& w) {
    static constexpr Configuration kConfigurations[2][2] = {{{1, 1}, {1, 2}}, {{2, 1}, {2, 2}}};
    _tile_loadconfig(&kConfigurations[in.parts - 1][w.halves - 1]);
  }
  ~Session() { _tile_release(); }
};

// The sums of a group or of half of it, for kVectors vectors of rows of a weight. With 15-bit activations, those of the high bytes come
// first.
using Sums = Ints[kVectors][2 * kTile];

// Computes the sums of a group in one of two sets of tiles. The sets are written out, because the intrinsics of GCC are macros that paste
// the number of a tile into the name of a register.
template <int kSet>
inline void multiply_tiles(const void* x, const Words* codes) {
  constexpr int kRowOfCodes = kVectors * sizeof(Words);
  if constexpr (kSet == 0) {
    _tile_loadd(4, x, 32);
    _tile_loadd(6, codes, kRowOfCodes);
    _tile_zero(0);
    _tile_dpbssd(0, 4, 6);
    _tile_loadd(7, codes + 1, kRowOfCodes);
    _tile_zero(1);
    _tile_dpbssd(1, 4, 7);
  } else {
    _tile_loadd(5, x, 32);
    _tile_loadd(6, codes, kRowOfCodes);
    _tile_zero(2);
    _tile_dpbssd(2, 5, 6);
    _tile_loadd(7, codes + 1, kRowOfCodes);
    _tile_zero(3);
    _tile_dpbssd(3, 5, 7);
  }
}

// Stores the sums that `multiply_tiles` computed.
template <int kSet>
inline void store_tiles(Sums& sums) {
  if constexpr (kSet == 0) {
    _tile_stored(0, sums[0], sizeof(Ints));
    _tile_stored(1, sums[1], sizeof(Ints));
  } else {
    _tile_stored(2, sums[0], sizeof(Ints));
    _tile_stored(3, sums[1], sizeof(Ints));
  }
}

// Scales the sums of half h of group g of a panel, and adds them to totals[vector][m]. x_scale: the scales and sums of the activations.
template <bool kOfBytes, int kHalves, bool kMinimum>
inline void add_scaled(const Panel& panel, int64_t g, int h, const float* x_scale, const Sums& sums, Floats (*totals)[kTile]) {
#pragma GCC unroll 2
  for (int v = 0; v < kVectors; v++) {
    const Floats scale = panel.scale[g][h][v], minimum = kMinimum ? panel.minimum[g][h][v] : Floats{};
#pragma GCC unroll 8
    for (int m = 0; m < kTile; m++) {
      const Ints sum = kOfBytes ? sums[v][m] : (sums[v][m] << 7) + sums[v][kTile + m];
      Floats total = totals[v][m] + to_float(sum) * scale * x_scale[m];
      if (kMinimum) total += minimum * x_scale[(kHalves == 1 ? 3 : 1 + h) * kTile + m];
      totals[v][m] = total;
    }
  }
}

// Like `add_products` of `tile_products.h`. While the sums of one group are scaled, the tiles of the next one are multiplied.
template <bool kOfBytes, int kHalves, bool kMinimum>
void add_products(const Panel& panel, int64_t first, int64_t last, const uint32_t* x, int64_t next, Totals totals) {
  Floats sum_of[kVectors][kTile];
#pragma GCC unroll 8
  for (int m = 0; m < kTile; m++)
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; v++) sum_of[v][m] = totals[m][v];
  Sums sums[2];
  asm volatile("" ::: "memory");  // compilers do not know that loading a tile reads memory
  multiply_tiles<0>(x, panel.codes(first, true)[0]);
  for (int64_t g = first; g < last; g++, x += stride(kOfBytes)) {
    const float* x_scale = (const float*)x + words_of_group(kOfBytes);
    for (int i = 0; i < stride(kOfBytes); i += 16) __builtin_prefetch((const char*)(x + i) + next);
    const bool more = g + 1 < last;
    store_tiles<0>(sums[0]);
    if (kHalves == 2) {
      multiply_tiles<1>(x + 4, panel.codes(g, true)[kPositions / 2]);
      if (g > first) add_scaled<kOfBytes, kHalves, kMinimum>(panel, g - 1, 1, x_scale - stride(kOfBytes), sums[1], sum_of);
      store_tiles<1>(sums[1]);
    }
    if (more) multiply_tiles<0>(x + stride(kOfBytes), panel.codes(g + 1, true)[0]);
    add_scaled<kOfBytes, kHalves, kMinimum>(panel, g, 0, x_scale, sums[0], sum_of);
    if (kHalves == 2 && !more) add_scaled<kOfBytes, kHalves, kMinimum>(panel, g, 1, x_scale, sums[1], sum_of);
  }
#pragma GCC unroll 8
  for (int m = 0; m < kTile; m++)
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; v++) totals[m][v] = sum_of[v][m];
}

using AddProducts = void (*)(const Panel&, int64_t, int64_t, const uint32_t*, int64_t, Totals);

AddProducts add_products_of(const Weight& w, bool bytes) {
  if (bytes && w.halves == 2) return w.minimum ? add_products<true, 2, true> : add_products<true, 2, false>;
  if (bytes) return w.minimum ? add_products<true, 1, true> : add_products<true, 1, false>;
  if (w.halves == 2) return w.minimum ? add_products<false, 2, true> : add_products<false, 2, false>;
  return w.minimum ? add_products<false, 1, true> : add_products<false, 1, false>;
}

}  // namespace
}  // namespace skinny_gemm
