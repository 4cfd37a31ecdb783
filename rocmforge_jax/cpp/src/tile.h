// The layout of quantised activations for `skinny_gemm.h`.
#pragma once

#include "panel.h"

namespace skinny_gemm {
namespace {

inline bool of_bytes(const Inputs& in) { return in.parts == 1 && BYTE_DOTS; }

// A tile of activations consists of groups. Each holds the integers of all rows [kTile][16 words] or [kTile][8 words], their scales
// [kTile], and the scaled sums of the first half, the second half and both [3][kTile].
constexpr int64_t words_of_group(bool bytes) { return kTile * (bytes ? 8 : 16); }
constexpr int64_t stride(bool bytes) { return words_of_group(bytes) + 4 * kTile; }

// Sums of products for the rows of a tile, for kVectors vectors of rows of a weight.
using Totals = Floats (*)[kVectors];

}  // namespace
}  // namespace skinny_gemm
