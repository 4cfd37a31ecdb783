// Products of activations with a dense weight.
//
// Products of a few rows are bound by memory. Each number of the weight is read once, in the order of memory, and is multiplied with all
// rows. For more rows, blocks of the weight are converted to float32 and multiplied with them in tiles.
#pragma once

#include "float_products.h"
#include "kernels.h"

namespace dense {
namespace {

// The most rows of activations whose products are bound by memory.
constexpr int64_t kFew = 8;
// The most rows of activations of a part, and the inputs and outputs of a block of the weight. As float32, the block, the activations that
// it is multiplied with and their sums fit into the second-level cache. They are dense copies, because rows of matrices are often a power
// of two apart, and would compete for the same places of a cache.
constexpr int64_t kMostTokens = 258, kDepth = 128, kWidth = 256;
static_assert(kMostTokens % kTileRows == 0 && kWidth % kTileColumns == 0 && kDepth % LANES == 0);
// Floats of scratch memory that `multiply` needs.
constexpr int64_t kScratch = kWidth * kDepth + kMostTokens * (kDepth + kWidth);

template <Number number>
constexpr int64_t kBytes = number == kFloat32 ? 4 : 2;

// Loads `count` numbers of a weight, from index i on, as float32; zeros fill the other lanes.
template <Number number>
inline Floats read(const void* weight, int64_t i, int count) {
  if constexpr (number == kFloat32) return (Floats)load((const uint32_t*)weight + i, count);
  else if constexpr (number == kFloat16) return load_halves((const uint16_t*)weight + i, count);
  else return (Floats)(load_narrow((const uint16_t*)weight + i, count) << 16);
}

// Prefetches a number of a weight into the second-level cache.
template <Number number>
inline void prefetch_number(const void* weight, int64_t i) {
  __builtin_prefetch((const char*)weight + i * kBytes<number>, 0, 2);
}

inline int lanes(int64_t left) { return left < LANES ? left : LANES; }

// Stores the first `count` lanes.
inline void write(float* p, Floats a, int count) {
  if (count == LANES) store(p, a);
  else __builtin_memcpy(p, &a, count * sizeof *p);
}

// Sets the outputs of a part to zero.
inline void clear(const Dense& d, const Part& p) {
  for (int64_t m = p.token; m < p.last_token; m++)
    for (int64_t n = p.first; n < p.last; n++) p.out[m * d.outputs + n] = 0;
}

// Adds the products of kRows rows of a weight [inputs, outputs], from row k on. The sums stay in the cache.
template <Number number, int kRows>
inline void add_rows(const Dense& d, const Part& p, int64_t k) {
  for (int64_t n = p.first; n < p.last; n += LANES) {
    const int count = lanes(p.last - n);
    Floats w[kRows];
#pragma GCC unroll 8
    for (int i = 0; i < kRows; i++) {
      const int64_t at = (k + i) * d.outputs + n;
      w[i] = read<number>(d.weight, at, count);
      prefetch_number<number>(d.weight, at + kRows * d.outputs);
    }
    for (int64_t m = p.token; m < p.last_token; m++) {
      const float* x = d.x + m * d.inputs + k;
      float* to = p.out + m * d.outputs + n;
      Floats sum = {};
#pragma GCC unroll 8
      for (int i = 0; i < kRows; i++) sum += x[i] * w[i];
      write(to, (Floats)load((const uint32_t*)to, count) + sum, count);
    }
  }
}

template <Number number>
void few_by_rows(const Dense& d, const Part& p) {
  clear(d, p);
  constexpr int kRows = 8;
  int64_t k = p.from;
  for (; k + kRows <= p.to; k += kRows) add_rows<number, kRows>(d, p, k);
  for (; k < p.to; k++) add_rows<number, 1>(d, p, k);
}

// Computes the products of kTokens rows of activations, from m on, with row n of a weight [outputs, inputs].
template <Number number, int kTokens>
inline void dots_of_row(const Dense& d, const Part& p, int64_t m, int64_t n) {
  constexpr int64_t kAhead = 2048;  // bytes
  constexpr int kSums = 4;  // of each product, so that additions do not wait for each other
  Floats sums[kTokens][kSums] = {};
  const int64_t row = n * d.inputs;
  for (int64_t k = p.from; k < p.to; k += kSums * LANES)
#pragma GCC unroll 4
    for (int i = 0; i < kSums; i++) {
      const int64_t at = k + i * LANES;
      const int count = lanes(p.to - at);
      if (count <= 0) break;
      const Floats w = read<number>(d.weight, row + at, count);
      prefetch_number<number>(d.weight, row + at + kAhead / kBytes<number>);
#pragma GCC unroll 2
      for (int t = 0; t < kTokens; t++) sums[t][i] += (Floats)load((const uint32_t*)(d.x + (m + t) * d.inputs + at), count) * w;
    }
  for (int t = 0; t < kTokens; t++) {
    for (int i = 1; i < kSums; i++) sums[t][0] += sums[t][i];
    p.out[(m + t) * d.outputs + n] = sum(sums[t][0]);
  }
}

template <Number number>
void few_by_columns(const Dense& d, const Part& p) {
  for (int64_t n = p.first; n < p.last; n++) {
    int64_t m = p.token;
    for (; m + 2 <= p.last_token; m += 2) dots_of_row<number, 2>(d, p, m, n);
    if (m < p.last_token) dots_of_row<number, 1>(d, p, m, n);
  }
}

// Where a block holds input i of output n: in tiles of kTileColumns outputs, with a row for each input.
inline int64_t place(int64_t i, int64_t n) { return (n / kTileColumns * kDepth + i) * kTileColumns + n % kTileColumns; }

// Converts the weights of the inputs k to k + depth - 1 for the outputs of a part.
template <Number number>
inline void convert(const Dense& d, const Part& p, int64_t k, int64_t depth, float* block) {
  for (int64_t i = 0; i < depth; i++)
    for (int64_t n = p.first; n < p.last; n += LANES)
      store(block + place(i, n - p.first), read<number>(d.weight, (k + i) * d.outputs + n, lanes(p.last - n)));
}

// The same for a weight [outputs, inputs].
template <Number number>
inline void convert_transposed(const Dense& d, const Part& p, int64_t k, int64_t depth, float* block) {
  for (int64_t n = p.first; n < p.last; n += LANES)
    for (int64_t i = 0; i < depth; i += LANES) {
      Words rows[LANES] = {};
      for (int r = 0; r < lanes(p.last - n); r++) rows[r] = (Words)read<number>(d.weight, (n + r) * d.inputs + k + i, lanes(depth - i));
      transpose(rows);
      for (int r = 0; r < lanes(depth - i); r++) store(block + place(i + r, n - p.first), rows[r]);
    }
}

template <Number number>
void many(const Dense& d, const Part& p, float* scratch) {
  float *block = scratch, *x = block + kWidth * kDepth, *sums = x + kMostTokens * kDepth;
  const int64_t tokens = p.last_token - p.token, outputs = p.last - p.first;
  for (int64_t i = 0; i < tokens * kWidth; i++) sums[i] = 0;
  for (int64_t k = p.from; k < p.to; k += kDepth) {
    const int64_t depth = p.to - k < kDepth ? p.to - k : kDepth;
    if (d.transposed) convert_transposed<number>(d, p, k, depth, block);
    else convert<number>(d, p, k, depth, block);
    for (int64_t m = 0; m < tokens; m++) __builtin_memcpy(x + m * kDepth, d.x + (p.token + m) * d.inputs + k, depth * sizeof *x);
    for (int64_t n = 0; n < outputs; n += kTileColumns)
      add_products(tokens, x, kDepth, block + n * kDepth, kTileColumns, depth, sums + n, kWidth);
  }
  for (int64_t m = 0; m < tokens; m++)
    __builtin_memcpy(p.out + (p.token + m) * d.outputs + p.first, sums + m * kWidth, outputs * sizeof *sums);
}

template <Number number>
void multiply_numbers(const Dense& d, const Part& p, float* scratch) {
  if (d.tokens > kFew) many<number>(d, p, scratch);
  else if (d.transposed) few_by_columns<number>(d, p);
  else few_by_rows<number>(d, p);
}

void multiply(const Dense& d, const Part& p, float* scratch) {
  switch (d.number) {
    case kFloat32: return multiply_numbers<kFloat32>(d, p, scratch);
    case kFloat16: return multiply_numbers<kFloat16>(d, p, scratch);
    case kBfloat16: return multiply_numbers<kBfloat16>(d, p, scratch);
  }
}

}  // namespace
}  // namespace dense
