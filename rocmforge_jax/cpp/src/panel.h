// A panel of a weight for `skinny_gemm.h`: kUnit rows of kPanel groups, unpacked. A vector holds LANES rows.
#pragma once

#include "quantize.h"
#include "weights.h"

// Whether this is compiled for tiles of AMX (`amx.cc`).
#ifndef TILES
#define TILES 0
#endif

namespace skinny_gemm {
namespace {

// Rows of activations, and vectors of rows of a weight, that are multiplied at once: their sums fill the registers.
constexpr int kTile = LANES == 16 ? 8 : 4, kVectors = 2, kUnit = kVectors * LANES;
// kPanel groups are unpacked at a time.
constexpr int kPanel = 16;

// kUnit rows of kPanel groups: signed codes, initial values of sums, scales.
struct Panel {
  Words words[kPanel * 2 * kPositions][kVectors];
  Ints start[kPanel][2][kVectors];
  Floats scale[kPanel][2][kVectors], minimum[kPanel][2][kVectors];

  // The codes of group g [position][vector], as bytes or as pairs of 16 bits.
  const Words (*codes(int64_t g, bool bytes) const)[kVectors] { return words + g * (bytes ? kPositions : 2 * kPositions); }
};

// Clamps a row to the last row of the weight.
inline int64_t row_or_last(const Weight& w, int64_t row) { return row < w.rows ? row : w.rows - 1; }

// Unpacks the codes of `count` groups from g on into the panel from its group `first` on. Words are transposed before they are unpacked,
// because there are more words after that.
template <int kBits, bool kTable>
void fill_codes(const Weight& w, bool bytes, int64_t row, int64_t g, int count, int first, int vector, Panel& to) {
  Words words[kBits][LANES];
#pragma GCC unroll 8
  for (int i = 0; i < kBits; i++) {
    for (int r = 0; r < LANES; r++) words[i][r] = load(w.codes + (row_or_last(w, row + r) * kBits + i) * w.groups + g, count);
    transpose(words[i]);
  }
  for (int i = 0; i < count; i++) {
    Words of_group[kBits], codes[kPositions];
#pragma GCC unroll 8
    for (int k = 0; k < kBits; k++) of_group[k] = words[k][i];
    unpack<kBits>(of_group, codes);
    Words(*put)[kVectors] = (Words(*)[kVectors])&to.codes(first + i, bytes)[0][vector];
    Ints ones[2] = {};
#pragma GCC unroll 8
    for (int p = 0; p < kPositions; p++) {
      if (kTable) codes[p] = look_up(codes[p], w.table);
      else if (kBits < 8) codes[p] = (Words)((Bytes)codes[p] - (int8_t)w.offset);
#if BYTE_DOTS
      if (bytes) {
        put[p][0] = codes[p];
        if (!TILES) ones[p / 4] = dot4(ones[p / 4], Words{} + 0x01010101u, codes[p]);
        continue;
      }
#endif
      for (int odd = 0; odd < 2; odd++) put[2 * p + odd][0] = pair_of_bytes<true>(codes[p], odd);
    }
    if (!bytes || TILES) continue;
    to.start[first + i][0][vector] = (w.halves == 2 ? ones[0] : ones[0] + ones[1]) * -128;
    to.start[first + i][1][vector] = ones[1] * -128;
  }
}

template <typename F>
void fill_scales(const Weight& w, int64_t row, int64_t g, int count, int first, int vector, Panel& to) {
  Words scales[F::kHalves][LANES], minima[F::kHalves][LANES];
  for (int r = 0; r < LANES; r++) {
    const Scales found = read_scales<F>(w, row_or_last(w, row + r), g, count);
    for (int h = 0; h < F::kHalves; h++) {
      scales[h][r] = (Words)found.scale[h];
      if (F::kMinimum) minima[h][r] = (Words)found.minimum[h];
    }
  }
  for (int h = 0; h < F::kHalves; h++) {
    transpose(scales[h]);
    if (F::kMinimum) transpose(minima[h]);
    for (int i = 0; i < LANES; i++) {
      to.scale[first + i][h][vector] = (Floats)scales[h][i];
      if (F::kMinimum) to.minimum[first + i][h][vector] = (Floats)minima[h][i];
    }
  }
}

using Fill = void (*)(const Weight&, bool, int64_t, int64_t, int64_t, Panel&);
template <typename F>
struct FillOf {
  static void fill(const Weight& w, bool bytes, int64_t row, int64_t g, int64_t count, Panel& to) {
    for (int vector = 0; vector < kVectors; vector++, row += LANES)
      for (int64_t first = 0; first < count; first += LANES) {
        const int some = count - first < LANES ? count - first : LANES;
        fill_codes<F::kBits, F::kTable>(w, bytes, row, g + first, some, first, vector, to);
        fill_scales<F>(w, row, g + first, some, first, vector, to);
      }
  }
  static constexpr Fill value = fill;
};

// Unpacks `count` groups of kUnit rows, from `row` and group g on.
void fill(const Weight& w, bool bytes, int64_t row, int64_t g, int64_t count, Panel& to) {
  by_form<FillOf, Fill>(w)(w, bytes, row, g, count, to);
}

}  // namespace
}  // namespace skinny_gemm
