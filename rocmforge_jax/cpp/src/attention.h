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

// The most queries per call, and the slots per tile. Calls with at most kFew queries are bound by memory and use larger tiles.
constexpr int kQueries = 48, kFew = 16, kSlots = 64, kSlotsOfFew = 256;
static_assert(kSlots % kTileColumns == 0 && kSlotsOfFew % kTileColumns == 0 && kQueries % kTileRows == 0);

inline int64_t padded(int64_t width) { return (width + kTileColumns - 1) / kTileColumns * kTileColumns; }

// Floats of scratch memory that `attend` needs.
inline int64_t scratch(int64_t width) {
  return kQueries * 2 * padded(width) + (kQueries > kFew * 4 ? kQueries : kFew * 4) * kSlots + kSlotsOfFew * 2 * padded(width);
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

// Computes attention of the queries first to last - 1 of one KV head. Queries are numbered with the heads of the group as the minor axis.
void attend(const Attention& of, int64_t b, int64_t head, int64_t first, int64_t last, float* memory) {
  const Rule& rule = of.rule;
  const int64_t H = of.width, P = padded(H), G = of.group, N = of.kv_heads * G, count = last - first;
  const int most = count <= kFew ? kSlotsOfFew : kSlots;
  float *q = memory, *out = q + kQueries * P, *scores = out + kQueries * P;
  float *keys = scores + (count <= kFew ? kFew : kQueries) * most, *values = keys + P * most;
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
    for (int64_t h = 0; h < H; h++) {
      __builtin_memcpy(keys + h * slots, all_keys + h * of.slots + at, here * sizeof(float));
      if (here < slots) __builtin_memset(keys + h * slots + here, 0, (slots - here) * sizeof(float));
    }
    for (int64_t i = 0; i < here && P != H; i++) {
      __builtin_memcpy(values + i * P, all_values + (at + i) * H, H * sizeof(float));
      __builtin_memset(values + i * P + H, 0, (P - H) * sizeof(float));
    }
    __builtin_memset(scores, 0, count * slots * sizeof(float));
    add_products(count, q, H, keys, slots, H, scores, slots);
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
