// Products of float32 matrices, in tiles whose sums fill the registers.
#pragma once

#include "vectors.h"

namespace {

// Columns and rows of a tile.
constexpr int kTileColumns = 4 * LANES, kTileRows = 6;

// c [rows, columns] += a [rows, depth] b [depth, columns]. columns is a multiple of kTileColumns. Rows of a are a_stride apart, and rows
// of c are c_stride apart; b is dense.
template <int rows>
inline void add_product(const float* a, int64_t a_stride, const float* b, int64_t columns, int64_t depth, float* c, int64_t c_stride) {
  for (int64_t j = 0; j < columns; j += kTileColumns) {
    Floats sums[rows][4] = {};
    for (int64_t k = 0; k < depth; k++) {
      Floats row[4];
      for (int i = 0; i < 4; i++) row[i] = whole<Floats>(b + k * columns + j + i * LANES);
      for (int r = 0; r < rows; r++)
        for (int i = 0; i < 4; i++) sums[r][i] += a[r * a_stride + k] * row[i];
    }
    for (int r = 0; r < rows; r++)
      for (int i = 0; i < 4; i++) {
        float* to = c + r * c_stride + j + i * LANES;
        store(to, whole<Floats>(to) + sums[r][i]);
      }
  }
}

inline void add_products(int rows, const float* a, int64_t a_stride, const float* b, int64_t columns, int64_t depth, float* c,
                         int64_t c_stride) {
  for (; rows >= kTileRows; rows -= kTileRows, a += kTileRows * a_stride, c += kTileRows * c_stride)
    add_product<kTileRows>(a, a_stride, b, columns, depth, c, c_stride);
  switch (rows) {
    case 1: return add_product<1>(a, a_stride, b, columns, depth, c, c_stride);
    case 2: return add_product<2>(a, a_stride, b, columns, depth, c, c_stride);
    case 3: return add_product<3>(a, a_stride, b, columns, depth, c, c_stride);
    case 4: return add_product<4>(a, a_stride, b, columns, depth, c, c_stride);
    case 5: return add_product<5>(a, a_stride, b, columns, depth, c, c_stride);
  }
}

}  // namespace
