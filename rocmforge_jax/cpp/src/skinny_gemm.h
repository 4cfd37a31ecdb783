// Skinny GEMM: products of tens of rows of activations and more, which are bound by arithmetic. A panel of a weight is unpacked once and
// multiplied with all rows.
//
// A vector holds LANES rows of a weight. 15-bit activations are multiplied with 16-bit codes, two at a time. 8-bit activations are
// multiplied with 8-bit codes, four at a time, if the processor supports VNNI. It requires unsigned activations, so 128 is added to them,
// and the initial value of the sum compensates.
#pragma once

#include "finish.h"
#include "panel.h"

namespace skinny_gemm {
namespace {

inline bool of_bytes(const Inputs& in) { return in.parts == 1 && BYTE_DOTS; }

// A tile of activations consists of groups. Each holds the integers of all rows [kTile][16 words] or [kTile][8 words], their scales
// [kTile], and the scaled sums of the first half, the second half and both [3][kTile].
constexpr int64_t words_of_group(bool bytes) { return kTile * (bytes ? 8 : 16); }
constexpr int64_t stride(bool bytes) { return words_of_group(bytes) + 4 * kTile; }

int64_t bytes(const Inputs& in) { return in.groups * stride(of_bytes(in)) * 4; }

// Packs word `i` of LANES groups.
template <bool kOfBytes>
inline Words word_of(const Ints* integers, int i) {
  if (!kOfBytes) return pair_of(integers, i / 2, i % 2);
  Words word = {};
#pragma GCC unroll 4
  for (int j = 0; j < 4; j++) word |= (Words)(integers[4 * i + j] + 128) << 8 * j;
  return word;
}

template <bool kOfBytes>
void quantize_row(const Inputs& in, int64_t row, uint32_t* to, int64_t row_of_tile) {
  constexpr int kWords = kOfBytes ? 8 : 16, kSome = kWords < LANES ? kWords : LANES;
  const float *x = in.x + row * in.groups * kGroup, factor = factor_of_norm(in, x);
  for (int64_t g = 0; g < in.groups; g += LANES, to += LANES * stride(kOfBytes)) {
    Groups groups;
    quantize_groups(in, x, g, factor, groups);
    const int count = in.groups - g < LANES ? in.groups - g : LANES;
#pragma GCC unroll 4
    for (int first = 0; first < kWords; first += LANES) {
      Words by_group[LANES];
#pragma GCC unroll 16
      for (int i = 0; i < LANES; i++) by_group[i] = i < kSome ? word_of<kOfBytes>(groups.integers, first + i) : Words{};
      transpose(by_group);
      for (int i = 0; i < count; i++)
        __builtin_memcpy(to + i * stride(kOfBytes) + row_of_tile * kWords + first, by_group + i, 4 * kSome);
    }
    const Floats scaled[4] = {groups.scale, to_float(groups.sums[0]) * groups.scale, to_float(groups.sums[1]) * groups.scale,
                              to_float(groups.sums[0] + groups.sums[1]) * groups.scale};
    float* scales = (float*)to + words_of_group(kOfBytes) + row_of_tile;
    for (int i = 0; i < count; i++)
#pragma GCC unroll 4
      for (int k = 0; k < 4; k++) scales[i * stride(kOfBytes) + k * kTile] = ((const float*)&scaled[k])[i];
  }
}

void quantize(const Inputs& in, int64_t row, void* tile, int64_t row_of_tile) {
  if (of_bytes(in)) quantize_row<true>(in, row, (uint32_t*)tile, row_of_tile);
  else quantize_row<false>(in, row, (uint32_t*)tile, row_of_tile);
}

using Totals = Floats (*)[kVectors];

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
        const Words* codes = panel.codes[g][h * kSteps + i];
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

inline int64_t tiles_of(int64_t count) { return (count + kTile - 1) / kTile; }
inline int64_t totals_of(int64_t count) { return tiles_of(count) * kTile * kVectors; }

int64_t scratch(const Job& job, int64_t count) { return sizeof(Panel) + job.weight_count * totals_of(count) * sizeof(Floats); }

// Computes totals [count rounded up to tiles][kVectors], the products of kUnit rows of a weight, from `row` on, with all tiles.
void multiply_unit(const Weight& w, const Inputs& in, const char* tiles, int64_t count, int64_t row, Panel& panel, Floats* totals) {
  const bool of_bytes = skinny_gemm::of_bytes(in);
  const AddProducts add = add_products_of(w, of_bytes);
  const int64_t tile_bytes = bytes(in);
  for (int64_t i = 0; i < totals_of(count); i++) totals[i] = Floats{};
  for (int64_t g = 0; g < w.groups; g += kPanel) {
    const int64_t groups = w.groups - g < kPanel ? w.groups - g : kPanel;
    fill(w, of_bytes, row, g, groups, panel);
    for (int64_t first = 0; first < groups; first += kDepth)
      for (int64_t tile = 0; tile < tiles_of(count); tile++) {
        const uint32_t* x = (const uint32_t*)(tiles + tile * tile_bytes) + (g + first) * stride(of_bytes);
        add(panel, first, groups - first < kDepth ? groups : first + kDepth, x, tile_bytes, (Totals)(totals + tile * kTile * kVectors));
      }
  }
}

void multiply(const Job& job, const Inputs& in, const void* tiles, int64_t m0, int64_t count, int64_t first, int64_t last, void* scratch) {
  Panel& panel = *(Panel*)scratch;
  Floats* totals[2] = {(Floats*)(&panel + 1), (Floats*)(&panel + 1) + totals_of(count)};
  for (int64_t row = first; row < last; row += kUnit) {
    for (int i = 0; i < job.weight_count; i++) multiply_unit(job.weights[i], in, (const char*)tiles, count, row, panel, totals[i]);
    for (int64_t m = 0; m < count; m++)
      for (int v = 0; v < kVectors; v++) {
        const int64_t r = row + v * LANES;
        if (r >= last) break;
        finish(job, m0 + m, r, last - r < LANES ? last - r : LANES, totals[0][m * kVectors + v],
               job.weight_count == 2 ? totals[1][m * kVectors + v] : Floats{});
      }
  }
}

}  // namespace
}  // namespace skinny_gemm
