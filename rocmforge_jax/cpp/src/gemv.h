// GEMV: products of a few rows of activations, which are bound by memory. The weights are read once, row by row.
//
// A vector holds words of LANES groups of one row of a weight. The sum over a group stays in its lane, LANES scales are applied at a time,
// and the lanes are summed once per row.
#pragma once

#include "dots.h"
#include "finish.h"
#include "forms.h"

namespace gemv {
namespace {

// Rows of a weight that are multiplied at once, limited by the number of registers.
constexpr int kRows = LANES == 16 ? 2 : 1;

// Rows of a weight whose products are buffered before the epilogue. As many as in a piece of work, so that a thread reads long runs.
constexpr int kOut = 256;

inline int64_t blocks(int64_t groups) { return (groups + LANES - 1) / LANES; }

int64_t bytes(const Inputs& in) { return blocks(in.groups) * (in.parts == 2 ? sizeof(Block<2>) : sizeof(Block<1>)); }

template <int kParts>
void quantize_row(const Inputs& in, int64_t row, Block<kParts>* to) {
  const float *x = in.x + row * in.groups * kGroup, factor = factor_of_norm(in, x);
  for (int64_t g = 0; g < in.groups; g += LANES, to++) {
    Groups groups;
    quantize_groups(in, x, g, factor, groups);
    for (int p = 0; p < kPositions; p++) {
      if (kPairs) {
        for (int odd = 0; odd < 2; odd++) to->words[odd * kPairs][p] = pair_of(groups.integers, p, odd);
        continue;
      }
      if (kParts == 2) split(groups.integers + 4 * p, to->words[0][p], to->words[kParts - 1][p]);
      else to->words[0][p] = bytes_of(groups.integers + 4 * p);
    }
    const Ints sums[3] = {groups.sums[0], groups.sums[1], groups.sums[0] + groups.sums[1]};
    to->scale = groups.scale;
    for (int i = 0; i < 3; i++) to->sums[i] = sums[i], to->scaled_sums[i] = to_float(sums[i]) * groups.scale;
  }
}

void quantize(const Inputs& in, int64_t row, void* tile, int64_t) {
  if (in.parts == 2) quantize_row(in, row, (Block<2>*)tile);
  else quantize_row(in, row, (Block<1>*)tile);
}

// The distances in bytes from the words that are multiplied to those that are prefetched into each level; 0 for none.
struct Distances {
  int64_t l1, l2;
};

// `step`: the bytes that are multiplied together, kRows rows. A prefetch is a whole number of steps ahead, because half a step ahead is data
// that the neighbouring row reads anyway. Words that are in the second level already need only a short distance. If a step exceeds it,
// they are two vectors ahead.
inline Distances distances(int64_t step) {
  const Prefetch how = prefetch();
  const auto steps = [&](int64_t ahead) { return (ahead + step - 1) / step * step; };
  return {how.l2 && how.l1 && how.l1 < step ? (int64_t)(2 * sizeof(Words)) : steps(how.l1), steps(how.l2)};
}

// There are no conditions here, because GCC would keep codes in memory. A distance of 0 prefetches what has just been read.
inline void fetch(const uint32_t* from, Distances ahead) {
  __builtin_prefetch((const char*)from + ahead.l1, 0, 3);
  __builtin_prefetch((const char*)from + ahead.l2, 0, 2);
}

// Adds to total[m][r] the products of kRows rows of a weight, from `first` on, with kBatch rows of activations, which are `stride` bytes
// apart. If only one row of the weight is left, it is computed twice.
template <int kBits, bool kTable, int kHalves, bool kMinimum, int kParts, int kBatch>
inline void block(const Weight& w, int64_t first, const char* x, int64_t stride, Distances ahead, Floats (*total)[kRows]) {
  constexpr bool kSigned = kBits == 8 || kTable, kLifted = kSigned && BYTE_DOTS;  // adding 128 makes bytes unsigned
  const int32_t offset = kSigned ? 128 * kLifted : (int32_t)w.offset;
  const int64_t second = kRows == 1 || first + 1 < w.rows ? 1 : 0, groups = w.groups;
  Scales scales[kRows];
  for (int64_t g = 0; g < groups; g += LANES) {
    const int count = groups - g < LANES ? groups - g : LANES;
    const int64_t in_chunk = g % kChunk;
    if (in_chunk == 0) {
      const int64_t of_chunk = groups - g < kChunk ? groups - g : kChunk;
      for (int r = 0; r < kRows; r++) read_scales<kMinimum>(w, first + r * second, g, of_chunk, scales[r]);
    }
    Words codes[kRows][kPositions];
#pragma GCC unroll 2
    for (int r = 0; r < kRows; r++) {
      Words words[kBits];
      const uint32_t* from = w.codes + (first + r * second) * kBits * groups + g;
#pragma GCC unroll 8
      for (int i = 0; i < kBits; i++, from += groups) {
        words[i] = load(from, count);
        fetch(from, ahead);
      }
      unpack<kBits>(words, codes[r]);
#pragma GCC unroll 8
      for (int p = 0; p < kPositions; p++) {
        if (kTable) codes[r][p] = look_up(codes[r][p], w.table);
        if (kLifted) codes[r][p] ^= 0x80808080u;
      }
    }
#pragma GCC unroll 4
    for (int m = 0; m < kBatch; m++) {
      const Block<kParts>& xs = ((const Block<kParts>*)(x + m * stride))[g / LANES];
#pragma GCC unroll 2
      for (int h = 0; h < kHalves; h++) {
        const int of_sum = kHalves == 1 ? 2 : h;
        const Ints lifted = -(xs.sums[of_sum] * offset);
#pragma GCC unroll 2
        for (int r = 0; r < kRows; r++) {
          constexpr int kCount = kPositions / kHalves;
          const Ints dot = dots<kBits, kSigned, kParts, kCount>(lifted, codes[r], xs, h * kCount);
          total[m][r] += to_float(dot) * (whole<Floats>(scales[r].scale[h] + in_chunk) * xs.scale);
          if (kMinimum) total[m][r] += whole<Floats>(scales[r].minimum[h] + in_chunk) * xs.scaled_sums[of_sum];
        }
      }
    }
  }
}

// Multiplies the rows `first` to last - 1 of a weight with kBatch rows of activations, which are `stride` bytes apart, and writes the
// products to out[m][r]. If less than kRows rows are left at the end of the weight, its last row is computed twice.
template <int kBits, bool kTable, int kHalves, bool kMinimum, int kParts, int kBatch>
void rows(const Weight& w, int64_t first, int64_t last, const char* x, int64_t stride, float (*out)[kOut]) {
  const Distances ahead = distances(kRows * kBits * w.groups * 4);
  for (int64_t row = first; row < last; row += kRows) {
    Floats total[kBatch][kRows] = {};
    block<kBits, kTable, kHalves, kMinimum, kParts, kBatch>(w, row, x, stride, ahead, total);
    for (int m = 0; m < kBatch; m++)
      for (int r = 0; r < kRows; r++) out[m][row - first + r] = sum(total[m][r]);
  }
}

// The most rows of activations in a batch.
constexpr int kTile = 4;
using Function = void (*)(const Weight&, int64_t, int64_t, const char*, int64_t, float (*)[kOut]);

// For batches of 1, 2 and 4 rows of activations.
template <int kBits, bool kTable, int kHalves, bool kMinimum, int kParts>
constexpr Function kOfParts[3] = {rows<kBits, kTable, kHalves, kMinimum, kParts, 1>, rows<kBits, kTable, kHalves, kMinimum, kParts, 2>,
                                  rows<kBits, kTable, kHalves, kMinimum, kParts, 4>};

struct Functions {
  const Function* of_parts[2];
};

template <int kBits, bool kTable, int kHalves, bool kMinimum>
constexpr Functions kFunctions = {{kOfParts<kBits, kTable, kHalves, kMinimum, 1>, kOfParts<kBits, kTable, kHalves, kMinimum, 2>}};

template <typename... Each>
const Functions* find(const Weight& w, List<Each...>) {
  const Functions* found = nullptr;
  ((Each::holds(w) && (found = &kFunctions<Each::kBits, Each::kTable, Each::kHalves, Each::kMinimum>)), ...);
  return found;
}

// Returns nullptr for a form of packing that is not supported.
const Functions* functions(const Weight& w) { return find(w, Forms{}); }

int64_t scratch(const Job&, int64_t) { return 0; }

void multiply(const Job& job, const Inputs& in, const void* tiles, int64_t m0, int64_t count, int64_t first, int64_t last, void*) {
  const int64_t stride = bytes(in);
  for (int64_t m = 0, batch; m < count; m += batch) {
    batch = count - m >= 4 ? 4 : count - m >= 2 ? 2 : 1;
    const char* x = (const char*)tiles + m * stride;
    for (int64_t row = first; row < last; row += kOut) {
      const int64_t rows = last - row < kOut ? last - row : kOut;
      alignas(64) float y[2][kTile][kOut];
      for (int i = 0; i < job.weight_count; i++) {
        const Function multiply_rows = functions(job.weights[i])->of_parts[in.parts - 1][batch / 2];
        multiply_rows(job.weights[i], row, row + rows, x, stride, y[i]);
      }
      for (int64_t b = 0; b < batch; b++)
        for (int64_t r = 0; r < rows; r += LANES) {
          const Floats value = whole<Floats>(&y[0][b][r]), up = whole<Floats>(&y[job.weight_count - 1][b][r]);
          finish(job, m0 + m + b, row + r, rows - r < LANES ? rows - r : LANES, value, up);
        }
    }
  }
}

}  // namespace
}  // namespace gemv
