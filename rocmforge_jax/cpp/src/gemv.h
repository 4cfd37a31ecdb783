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

// Lines of longer steps, in bytes, do not stay in the first-level cache until the next step.
constexpr int64_t kLongStep = 12 << 10;

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

// Where a GEMV prefetches. A step reads kRows * kBits runs of words side by side, a vector of each in turn. Memory is fastest in order, so
// lines are prefetched in the order of their addresses, whole steps ahead. The first level prefetches the lines of a long step as they are
// read, two vectors ahead. There are no conditions here, because GCC would keep codes in memory.
struct Distances {
  int64_t l1, l2;  // in bytes, from the start of a step; 0: prefetches what is read anyway
  int64_t stride, rest;  // what is added to the address of the first level after each vector, and after a vector of each run
};

// step, run: bytes.
inline Distances distances(int64_t step, int64_t run) {
  const Prefetch how = prefetch();
  const int64_t vector = sizeof(Words);
  const auto steps = [step](int64_t ahead) { return (ahead + step - 1) / step * step; };
  if (how.l1 && how.l2 && step > kLongStep) return {2 * vector, steps(how.l2), run, vector - step};
  return {steps(how.l1), steps(how.l2), vector, 0};
}

// Scales are prefetched so many rows ahead.
constexpr int64_t kRowsAhead = 4 * kRows;

// Prefetches the scales of kRows rows.
template <typename F>
inline void fetch_scales(const Weight& w, int64_t row) {
  if constexpr (F::kKind != kAnyScale) {
    const auto fetch = [row](const void* of, int64_t bytes_of_row) {
      for (int64_t i = 0; i < kRows * bytes_of_row; i += 64) __builtin_prefetch((const char*)of + row * bytes_of_row + i);
    };
    if (F::kKind != kE8M0 && F::kKind != kE4M3) fetch(w.d, w.groups / F::kSpan * (F::kMinimum ? 4 : 2));
    if (F::kKind != kD) fetch(w.scale, w.groups * F::kHalves * (F::kKind == kBytes ? 2 : 1));
  }
}

// Computes total[m][r], the products of kRows rows of a weight, from `first` on, with kBatch rows of activations, which are `stride` bytes
// apart. If only one row of the weight is left, it is computed twice.
template <typename F, int kParts, int kBatch>
inline void block(const Weight& w, int64_t first, const char* x, int64_t stride, Distances ahead, Floats (*total)[kRows]) {
  constexpr int kBits = F::kBits, kHalves = F::kHalves;
  constexpr bool kSigned = kBits == 8 || F::kTable, kLifted = kSigned && BYTE_DOTS;  // adding 128 makes bytes unsigned
  const int32_t offset = kSigned ? 128 * kLifted : (int32_t)w.offset;
  const int64_t second = kRows == 1 || first + 1 < w.rows ? 1 : 0, groups = w.groups;
  const char *near = (const char*)(w.codes + first * kBits * groups) + ahead.l1, *far = near - ahead.l1 + ahead.l2;
  fetch_scales<F>(w, first + kRowsAhead);
  Floats sums[kBatch][kRows] = {};
  for (int64_t g = 0; g < groups; g += LANES) {
    const int count = groups - g < LANES ? groups - g : LANES;
    Words codes[kRows][kPositions];
#pragma GCC unroll 2
    for (int r = 0; r < kRows; r++) {
      Words words[kBits];
      const uint32_t* from = w.codes + (first + r * second) * kBits * groups + g;
#pragma GCC unroll 8
      for (int i = 0; i < kBits; i++, from += groups, near += ahead.stride) {
        words[i] = load(from, count);
        __builtin_prefetch(near, 0, 3);
        if (const int at = (r * kBits + i) * sizeof(Words); at % 64 == 0) __builtin_prefetch(far + at, 0, 2);
      }
      unpack<kBits>(words, codes[r]);
#pragma GCC unroll 8
      for (int p = 0; p < kPositions; p++) {
        if (F::kTable) codes[r][p] = look_up(codes[r][p], w.table);
        if (kLifted) codes[r][p] ^= 0x80808080u;
      }
    }
    near += ahead.rest, far += kRows * kBits * sizeof(Words);
    Scales scales[kRows];
#pragma GCC unroll 2
    for (int r = 0; r < kRows; r++) scales[r] = read_scales<F>(w, first + r * second, g, count);
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
          sums[m][r] += to_float(dot) * (scales[r].scale[h] * xs.scale);
          if (F::kMinimum) sums[m][r] += scales[r].minimum[h] * xs.scaled_sums[of_sum];
        }
      }
    }
  }
#pragma GCC unroll 4
  for (int m = 0; m < kBatch; m++)
#pragma GCC unroll 2
    for (int r = 0; r < kRows; r++) total[m][r] = sums[m][r];
}

// Multiplies the rows `first` to last - 1 of a weight with kBatch rows of activations, which are `stride` bytes apart, and writes the
// products to out[m][r]. If less than kRows rows are left at the end of the weight, its last row is computed twice.
template <typename F, int kParts, int kBatch>
void rows(const Weight& w, int64_t first, int64_t last, const char* x, int64_t stride, float (*out)[kOut]) {
  const int64_t run = w.groups * 4, step = kRows * F::kBits * run;
  const Distances ahead = distances(step, run);
  // What the first steps read is prefetched now, because no step before them did. Another thread may have read the rows before.
  const char *start = (const char*)(w.codes + first * F::kBits * w.groups), *end = start + (last - first) * step / kRows;
  for (const char* line = start; line < start + ahead.l2 && line < end; line += 64) __builtin_prefetch(line, 0, 2);
  for (int64_t row = first; row < first + kRowsAhead; row += kRows) fetch_scales<F>(w, row);
  for (int64_t row = first; row < last; row += kRows) {
    Floats total[kBatch][kRows];
    block<F, kParts, kBatch>(w, row, x, stride, ahead, total);
    for (int m = 0; m < kBatch; m++)
      for (int r = 0; r < kRows; r++) out[m][row - first + r] = sum(total[m][r]);
  }
}

// The most rows of activations in a batch.
constexpr int kTile = 4;
using Function = void (*)(const Weight&, int64_t, int64_t, const char*, int64_t, float (*)[kOut]);

// For 8-bit and for 15-bit activations, and for batches of 1, 2 and 4 rows of them.
using Functions = const Function (*)[3];
template <typename F>
struct FunctionsOf {
  // Forms with any scales compute rows of activations one by one, so that less is compiled.
  template <int kParts, int kBatch>
  static void rows_of(const Weight& w, int64_t first, int64_t last, const char* x, int64_t stride, float (*out)[kOut]) {
    if constexpr (F::kKind != kAnyScale) rows<F, kParts, kBatch>(w, first, last, x, stride, out);
    else
      for (int m = 0; m < kBatch; m++) rows<F, kParts, 1>(w, first, last, x + m * stride, stride, out + m);
  }
  static constexpr Function each[2][3] = {{rows_of<1, 1>, rows_of<1, 2>, rows_of<1, 4>}, {rows_of<2, 1>, rows_of<2, 2>, rows_of<2, 4>}};
  static constexpr Functions value = each;
};

// Returns nullptr for a form of packing that is not supported.
Functions functions(const Weight& w) { return by_form<FunctionsOf, Functions>(w); }

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
        const Function multiply_rows = functions(job.weights[i])[in.parts - 1][batch / 2];
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
