// Attention over a KV cache, and the update of the cache, as XLA custom calls. The arithmetic is in `attention.h`.

#include <algorithm>
#include <string>
#include <vector>

#include "processor.h"
#include "team.h"
#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace {

// Multiplications that justify waking one more thread.
constexpr int64_t kWorthAThread = 1 << 16;

using F32 = ffi::Buffer<ffi::F32>;
using S32 = ffi::Buffer<ffi::S32>;

int64_t threads_for(ffi::ThreadPool& pool, int64_t work) {
  return std::clamp<int64_t>(work / kWorthAThread, 1, std::max<int64_t>(pool.num_threads(), 1));
}

ffi::Error beyond_the_cache(int64_t row, int64_t tokens, int64_t start, int64_t slots) {
  return ffi::Error::InvalidArgument("tokens beyond the cache: " + std::to_string(tokens) + " tokens after " + std::to_string(start) +
                                     " in row " + std::to_string(row) + " do not fit " + std::to_string(slots) +
                                     " slots; make a cache for at least " + std::to_string(start + tokens) + " tokens");
}

// q [B, T, N, H], keys [B, K, H, S], values [B, K, S, H], starts [B], filled [B] or [0], sinks [N] or [0] -> [B, T, N, H]. ring: whether
// the slots are a ring buffer, with position p in slot p % S.
ffi::Error attend(ffi::ThreadPool pool, F32 q, F32 keys, F32 values, S32 starts, S32 filled, F32 sinks, ffi::Result<F32> out, float scale,
                  bool causal, int64_t window, float soft_cap, bool ring) {
  const auto shape = q.dimensions();
  const int64_t B = shape[0], T = shape[1], N = shape[2], K = keys.dimensions()[1];
  const Attention of{q.typed_data(), keys.typed_data(), values.typed_data(), starts.typed_data(),
                     filled.element_count() ? filled.typed_data() : nullptr, out->typed_data(), T, K, N / K, shape[3], keys.dimensions()[3],
                     ring,
                     Rule{scale, soft_cap, causal, window, sinks.element_count() ? sinks.typed_data() : nullptr}};
  for (int64_t b = 0; b < B; b++) {
    if (of.starts[b] < 0 || (!ring && of.starts[b] + T > of.slots)) return beyond_the_cache(b, T, of.starts[b], of.slots);
    if (of.filled && (of.filled[b] < 0 || of.filled[b] > of.slots)) return ffi::Error::InvalidArgument("filled slots beyond the cache");
  }
  const Kernels& use = kernels();
  const int64_t rows = T * (N / K), tiles = (rows + use.queries - 1) / use.queries;
  int64_t work = 0;
  for (int64_t b = 0; b < B; b++) work += (window ? std::min(of.starts[b] + T, window) : of.starts[b] + T) * T * N * of.width;
  Team team(pool, std::min(threads_for(pool, work), B * K * tiles) - 1);
  team.run(B * K * tiles, [&](int64_t i) {
    static thread_local std::vector<float> memory;
    memory.resize(std::max<size_t>(memory.size(), use.attend_scratch(of.width)));
    const int64_t head = i / tiles, tile = tiles - 1 - i % tiles;  // the tiles that see the most slots come first
    use.attend(of, head / K, head % K, tile * use.queries, std::min(rows, (tile + 1) * use.queries), memory.data());
  });
  return ffi::Error::Success();
}

// Rotates the first 2 * R elements of a head by R angles and copies the others. interleaved: whether pair i is the elements 2i and 2i + 1,
// and not i and R + i.
void rotate(const float* x, const float* cos, const float* sin, int64_t R, int64_t H, bool interleaved, float* out) {
  if (interleaved) {
    for (int64_t i = 0; i < R; i++) {
      const float first = x[2 * i], second = x[2 * i + 1];
      out[2 * i] = first * cos[i] - second * sin[i], out[2 * i + 1] = second * cos[i] + first * sin[i];
    }
  } else {
    for (int64_t i = 0; i < R; i++) {
      const float first = x[i], second = x[R + i];
      out[i] = first * cos[i] - second * sin[i], out[R + i] = second * cos[i] + first * sin[i];
    }
  }
  std::copy(x + 2 * R, x + H, out + 2 * R);
}

// q [B, T, N, H], k and v [B, T, K, H], cos and sin [B, T, R], keys, values, starts -> the rotated q, and keys and values with the new
// tokens in the slots from starts[b] on.
ffi::Error rotate_and_store(ffi::ThreadPool pool, F32 q, F32 k, F32 v, F32 cos, F32 sin, F32 keys, F32 values, S32 starts,
                            ffi::Result<F32> q_out, ffi::Result<F32> keys_out, ffi::Result<F32> values_out, bool interleaved) {
  const auto shape = q.dimensions();
  const int64_t B = shape[0], T = shape[1], N = shape[2], H = shape[3], K = k.dimensions()[2], S = keys.dimensions()[3];
  const int64_t R = cos.dimensions()[2];
  if (keys.typed_data() != keys_out->typed_data()) std::copy_n(keys.typed_data(), keys.element_count(), keys_out->typed_data());
  if (values.typed_data() != values_out->typed_data()) std::copy_n(values.typed_data(), values.element_count(), values_out->typed_data());
  for (int64_t b = 0; b < B; b++)
    if (starts.typed_data()[b] < 0 || starts.typed_data()[b] + T > S) return beyond_the_cache(b, T, starts.typed_data()[b], S);
  constexpr int64_t kTokens = 16;  // per task: one cache line of each row of keys
  const int64_t pieces = (T + kTokens - 1) / kTokens;
  Team team(pool, std::min(threads_for(pool, B * T * (N + 2 * K) * H), B * pieces) - 1);
  team.run(B * pieces, [&](int64_t i) {
    static thread_local std::vector<float> rotated;
    rotated.resize(std::max<size_t>(rotated.size(), kTokens * H));
    const int64_t b = i / pieces, first = i % pieces * kTokens, last = std::min(T, first + kTokens), start = starts.typed_data()[b];
    const auto turn = [&](const float* x, int64_t t, float* to) {
      const int64_t angles = (b * T + t) * R;
      rotate(x, cos.typed_data() + angles, sin.typed_data() + angles, R, H, interleaved, to);
    };
    for (int64_t t = first; t < last; t++)
      for (int64_t n = 0; n < N; n++) turn(q.typed_data() + ((b * T + t) * N + n) * H, t, q_out->typed_data() + ((b * T + t) * N + n) * H);
    for (int64_t head = 0; head < K; head++) {
      for (int64_t t = first; t < last; t++) {
        const int64_t from = ((b * T + t) * K + head) * H;
        turn(k.typed_data() + from, t, rotated.data() + (t - first) * H);
        std::copy_n(v.typed_data() + from, H, values_out->typed_data() + ((b * K + head) * S + start + t) * H);
      }
      for (int64_t h = 0; h < H; h++)
        for (int64_t t = first; t < last; t++)
          keys_out->typed_data()[((b * K + head) * H + h) * S + start + t] = rotated[(t - first) * H + h];
    }
  });
  return ffi::Error::Success();
}

}  // namespace

extern "C" __attribute__((visibility("default"))) XLA_FFI_Error* Attend(XLA_FFI_CallFrame*);
XLA_FFI_DEFINE_HANDLER_SYMBOL(
    Attend, attend,
    ffi::Ffi::Bind()
        .Ctx<ffi::ThreadPool>()
        .Arg<F32>().Arg<F32>().Arg<F32>().Arg<S32>().Arg<S32>().Arg<F32>()
        .Ret<F32>()
        .Attr<float>("scale").Attr<bool>("causal").Attr<int64_t>("window").Attr<float>("soft_cap").Attr<bool>("ring"));

extern "C" __attribute__((visibility("default"))) XLA_FFI_Error* RotateAndStore(XLA_FFI_CallFrame*);
XLA_FFI_DEFINE_HANDLER_SYMBOL(RotateAndStore, rotate_and_store,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<F32>().Arg<F32>().Arg<F32>().Arg<F32>().Arg<F32>().Arg<F32>().Arg<F32>().Arg<S32>()
                                  .Ret<F32>().Ret<F32>().Ret<F32>()
                                  .Attr<bool>("interleaved"));
