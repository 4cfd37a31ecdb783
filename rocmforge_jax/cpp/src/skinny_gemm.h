// Skinny GEMM: products of tens of rows of activations and more, which are bound by arithmetic. A panel of a weight is unpacked once and
// multiplied with all rows.
#pragma once

#include "finish.h"
#include "panel.h"

#if TILES
#include "amx_products.h"
#else
#include "tile_products.h"
#endif

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

// Rows of a weight that are multiplied at once.
constexpr int kRows = kPanels * kUnit;

int64_t scratch(const Job& job, int64_t count) { return kPanels * (sizeof(Panel) + job.weight_count * totals_of(count) * sizeof(Floats)); }

// Computes totals [panel][count rounded up to tiles][kVectors], the products of the rows of a weight in `panels` panels, from `row` on, with
// all tiles.
void multiply_rows(const Weight& w, const Inputs& in, const char* tiles, int64_t count, int64_t row, int panels, Panel* panel, Floats* totals) {
  const bool of_bytes = skinny_gemm::of_bytes(in);
  const AddProducts add = add_products_of(w, of_bytes);
  const int64_t tile_bytes = bytes(in);
  const Session session(in, w);
  for (int64_t i = 0; i < panels * totals_of(count); i++) totals[i] = Floats{};
  for (int64_t g = 0; g < w.groups; g += kPanel) {
    const int64_t groups = w.groups - g < kPanel ? w.groups - g : kPanel;
    for (int p = 0; p < panels; p++) fill(w, panel_of_bytes(in), row + p * kUnit, g, groups, panel[p]);
    for (int64_t first = 0; first < groups; first += kDepth)
      for (int64_t tile = 0; tile < tiles_of(count); tile++)
        for (int p = 0; p < panels; p++) {
          const uint32_t* x = (const uint32_t*)(tiles + tile * tile_bytes) + (g + first) * stride(of_bytes);
          const int64_t last = groups - first < kDepth ? groups : first + kDepth;
          add(panel[p], first, last, x, tile_bytes, (Totals)(totals + p * totals_of(count) + tile * kTile * kVectors));
        }
  }
}

void multiply(const Job& job, const Inputs& in, const void* tiles, int64_t m0, int64_t count, int64_t first, int64_t last, void* scratch) {
  Panel* panel = (Panel*)scratch;
  Floats* totals[2] = {(Floats*)(panel + kPanels), (Floats*)(panel + kPanels) + kPanels * totals_of(count)};
  for (int64_t row = first; row < last; row += kRows) {
    const int panels = last - row < kRows ? (last - row + kUnit - 1) / kUnit : kPanels;
    for (int i = 0; i < job.weight_count; i++) multiply_rows(job.weights[i], in, (const char*)tiles, count, row, panels, panel, totals[i]);
    for (int64_t m = 0; m < count; m++)
      for (int v = 0; v < panels * kVectors; v++) {
        const int64_t r = row + v * LANES, at = v / kVectors * totals_of(count) + m * kVectors + v % kVectors;
        if (r >= last) break;
        finish(job, m0 + m, r, last - r < LANES ? last - r : LANES, totals[0][at], job.weight_count == 2 ? totals[1][at] : Floats{});
      }
  }
}

}  // namespace
}  // namespace skinny_gemm
