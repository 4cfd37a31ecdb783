// Skinny GEMM: products of tens of rows of activations and more, which are bound by arithmetic. A panel of a weight is unpacked once and
// multiplied with all rows.
#pragma once

#include "finish.h"
#include "tile_products.h"

namespace skinny_gemm {
namespace {

int64_t bytes(const Inputs& in) { return in.groups * stride(of_bytes(in)) * 4; }

template <bool kOfBytes>
void quantize_row(const Inputs& in, int64_t row, uint32_t* to, int64_t row_of_tile) {
  const float *x = in.x + row * in.groups * kGroup, factor = factor_of_norm(in, x);
  for (int64_t g = 0; g < in.groups; g += LANES, to += LANES * stride(kOfBytes)) {
    Groups groups;
    quantize_groups(in, x, g, factor, groups);
    const int count = in.groups - g < LANES ? in.groups - g : LANES;
    store_integers<kOfBytes>(groups.integers, count, to, row_of_tile);
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
