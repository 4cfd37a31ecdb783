// Flash attention (Dao et al., 2022, arXiv:2205.14135) of new tokens over a KV cache. The query heads of a KV head are computed together.
// Slots are computed in tiles, so that scores stay in the L1 cache.
#pragma once

#include <cmath>

#include "exponential.h"
#include "float_products.h"
#include "kernels.h"
#include "vectors.h"

namespace attention {
namespace {

// The most queries per call, and the slots per tile. Calls with at most kFew queries are bound by memory: they use larger tiles, read
// kRowsOfKeys rows of keys at a time, in runs, and prefetch those kRowsAhead rows ahead.
constexpr int kQueries = 48, kFew = 16, kSlots = 64, kSlotsOfFew = 256, kRowsOfKeys = 8, kRowsAhead = 16;
static_assert(kSlots % kTileColumns == 0 && kSlotsOfFew % kTileColumns == 0 && kQueries % kTileRows == 0);

inline int64_t padded(int64_t width) { return (width + kTileColumns - 1) / kTileColumns * kTileColumns; }

// Floats of scratch memory that `attend` needs.
inline int64_t scratch(int64_t width) {
  constexpr int kScores = kQueries * kSlots > kFew * kSlotsOfFew ? kQueries * kSlots : kFew * kSlotsOfFew;
  return kScores + (2 * kQueries + kSlots + kSlotsOfFew) * padded(width);
}

// The slots first to end - 1. In a ring buffer, these are positions.
struct Slots {
  int64_t first, end;
};

// The slots that a query of token t of sequence b sees.
inline Slots seen_by(const Attention& of, int64_t b, int64_t t) {
  const int64_t own = of.starts[b] + t, window = of.rule.window;
  if (of.rule.causal) return {window && window <= own ? own + 1 - window : 0, own + 1};
  const int64_t filled = of.filled ? of.filled[b] : of.starts[b] + of.tokens;
  if (!window) return {0, filled};
  const int64_t reach = window / 2;  // to both sides
  return {own > reach ? own - reach : 0, own + reach < filled ? own + reach + 1 : filled};
}

// Replaces the numbers of slots outside of `seen` by `otherwise`. The numbers belong to the slots i to i + LANES - 1.
inline Floats where_seen(Floats numbers, int i, Slots seen, float otherwise) {
  if (seen.first <= i && i + LANES <= seen.end) return numbers;
  const Ints slot = kLaneNumbers + i;
  return (slot >= (int)seen.first) & (slot < (int)seen.end) ? numbers : Floats{} + otherwise;
}

// Turns the scores of a query for the slots of a tile into weights and updates its largest score and the sum of its weights. Slots outside
// of `seen` get weight 0. Returns the factor to rescale earlier sums with.
inline float soften(float* scores, int slots, Slots seen, float& largest, float& total) {
  Floats highest = Floats{} - INFINITY;
  for (int i = 0; i < slots; i += LANES) {
    const Floats s = where_seen(whole<Floats>(scores + i), i, seen, -INFINITY);
    highest = s > highest ? s : highest;
  }
  float now = largest;
  for (int j = 0; j < LANES; j++) now = highest[j] > now ? highest[j] : now;
  Floats sums = {};
  for (int i = 0; i < slots; i += LANES) {
    const Floats weight = where_seen(exponential(whole<Floats>(scores + i) - now), i, seen, 0);
    sums += weight;
    store(scores + i, weight);
  }
  const float factor = std::exp(largest - now);
  largest = now, total = total * factor + sum(sums);
  return factor;
}

// Computes the part of the scores [count, slots] of queries [count, H] that kRows rows of keys contribute, from row h on. Row 0 begins the
// sums. The keys of `here` slots are read; rows of keys are `stride` apart.
template <int kRows>
inline void add_scores(const float* q, int64_t count, int64_t H, int64_t h, const float* keys, int64_t stride, int64_t here, float* scores,
                       int64_t slots) {
  for (int64_t j = 0; j < here; j += LANES) {
    const int some = here - j < LANES ? (int)(here - j) : LANES;
    Floats row[kRows];
#pragma GCC unroll 8
    for (int i = 0; i < kRows; i++) {
      row[i] = (Floats)load((const uint32_t*)keys + (h + i) * stride + j, some);
      __builtin_prefetch(keys + (h + i + kRowsAhead) * stride + j, 0, 2);
    }
    for (int64_t n = 0; n < count; n++) {
      float* to = scores + n * slots + j;
      Floats sum = h ? whole<Floats>(to) : Floats{};
#pragma GCC unroll 8
      for (int i = 0; i < kRows; i++) sum += q[n * H + h + i] * row[i];
      store(to, sum);
    }
  }
}

// Computes the scores [count, slots] of a few queries [count, H] for the keys of `here` slots. What follows them is arbitrary.
void scores_of_few(const float* q, int64_t count, int64_t H, const float* keys, int64_t stride, int64_t here, float* scores, int64_t slots) {
  int64_t h = 0;
  for (; h + kRowsOfKeys <= H; h += kRowsOfKeys) add_scores<kRowsOfKeys>(q, count, H, h, keys, stride, here, scores, slots);
  for (; h < H; h++) add_scores<1>(q, count, H, h, keys, stride, here, scores, slots);
}

// The same for any number of queries. Keys are copied, so that they stay in the first-level cache.
void scores_of_many(const float* q, int64_t count, int64_t H, const float* keys, int64_t stride, int64_t here, float* scores, int64_t slots,
                    float* copied) {
  for (int64_t h = 0; h < H; h++) {
    __builtin_memcpy(copied + h * slots, keys + h * stride, here * sizeof(float));
    if (here < slots) __builtin_memset(copied + h * slots + here, 0, (slots - here) * sizeof(float));
  }
  __builtin_memset(scores, 0, count * slots * sizeof(float));
  add_products(count, q, H, copied, slots, H, scores, slots);
}

// Computes attention of the queries first to last - 1 of one KV head. Queries are numbered with the heads of the group as the minor axis.
void attend(const Attention& of, int64_t b, int64_t head, int64_t first, int64_t last, float* memory) {
  const Rule& rule = of.rule;
  const int64_t H = of.width, P = padded(H), G = of.group, N = of.kv_heads * G, count = last - first;
  const int most = count <= kFew ? kSlotsOfFew : kSlots;
  float *q = memory, *out = q + kQueries * P, *keys = out + kQueries * P, *values = keys + kSlots * P, *scores = values + kSlotsOfFew * P;
  float largest[kQueries], total[kQueries];
  const auto place = [&](int64_t i) { return ((b * of.tokens + (first + i) / G) * N + head * G + (first + i) % G) * H; };
  const float scale = rule.soft_cap ? rule.scale / rule.soft_cap : rule.scale;
  for (int64_t i = 0; i < count; i++) {
    for (int64_t h = 0; h < H; h++) q[i * H + h] = of.q[place(i) + h] * scale;
    // A sink acts as an earlier score whose value is zero.
    largest[i] = rule.sinks ? rule.sinks[head * G + (first + i) % G] : -INFINITY;
    total[i] = largest[i] > -INFINITY ? 1 : 0;
  }
  __builtin_memset(out, 0, count * P * sizeof(float));

  const float* all_keys = of.keys + (b * of.kv_heads + head) * H * of.slots;
  const float* all_values = of.values + (b * of.kv_heads + head) * of.slots * H;
  const int64_t end = seen_by(of, b, (last - 1) / G).end;
  int64_t here;
  for (int64_t s = seen_by(of, b, first / G).first; s < end; s += here) {
    const int64_t at = of.ring ? s % of.slots : s;  // a tile ends where the ring does
    here = end - s < most ? end - s : most;
    if (of.slots - at < here) here = of.slots - at;
    const int slots = (int)padded(here);
    if (count <= kFew) {
      for (int64_t i = 0; i < here * H; i += 64 / sizeof(float)) __builtin_prefetch(all_values + at * H + i, 0, 2);
      scores_of_few(q, count, H, all_keys + at, of.slots, here, scores, slots);
    } else {
      scores_of_many(q, count, H, all_keys + at, of.slots, here, scores, slots, keys);
    }
    for (int64_t i = 0; i < here && P != H; i++) {
      __builtin_memcpy(values + i * P, all_values + (at + i) * H, H * sizeof(float));
      __builtin_memset(values + i * P + H, 0, (P - H) * sizeof(float));
    }
    for (int64_t i = 0; i < count; i++) {
      float* own = scores + i * slots;
      Slots seen = seen_by(of, b, (first + i) / G);
      seen = {seen.first - s, seen.end - s < here ? seen.end - s : here};
      if (seen.end <= 0 || seen.first >= here || seen.first >= seen.end) {  // only other queries see slots of this tile
        __builtin_memset(own, 0, slots * sizeof(float));
        continue;
      }
      for (int j = 0; j < slots && rule.soft_cap; j += LANES) store(own + j, rule.soft_cap * hyperbolic_tangent(whole<Floats>(own + j)));
      const float factor = soften(own, slots, seen, largest[i], total[i]);
      for (int64_t h = 0; h < P; h += LANES) store(out + i * P + h, whole<Floats>(out + i * P + h) * factor);
    }
    add_products(count, scores, slots, P == H ? all_values + at * H : values, P, here, out, P);
  }
  for (int64_t i = 0; i < count; i++)
    for (int64_t h = 0; h < H; h++) of.out[place(i) + h] = total[i] == 0 ? 0 : out[i * P + h] / total[i];
}

}  // namespace
}  // namespace attention
