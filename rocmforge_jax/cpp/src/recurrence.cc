// Single tokens of the gated delta rule and of a selective state space, as XLA custom calls. The arithmetic is in `recurrence.h`.

#include <algorithm>
#include <cmath>

#include "processor.h"
#include "team.h"
#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace {

// How many numbers of memory justify waking one more thread.
constexpr int64_t kWorthAThread = 1 << 16;

using F32 = ffi::Buffer<ffi::F32>;

// Calls step(i) for each of the heads of all sequences.
template <typename Step>
void for_heads(ffi::ThreadPool& pool, int64_t heads, int64_t of_memory, const Step& step) {
  const int64_t threads = std::clamp<int64_t>(heads * of_memory / kWorthAThread, 1, std::max<int64_t>(pool.num_threads(), 1));
  Team team(pool, std::min(threads, heads) - 1);
  team.run(heads, step);
}

// q and k [B, N, H], v [B, N, W], log_decay and beta [B, N], memory [B, N, H, W] -> out [B, N, W], the new memory.
ffi::Error delta_step(ffi::ThreadPool pool, F32 q, F32 k, F32 v, F32 log_decay, F32 beta, F32 memory, ffi::Result<F32> out,
                      ffi::Result<F32> new_memory) {
  const auto shape = memory.dimensions();
  const int64_t heads = shape[0] * shape[1], H = shape[2], W = shape[3];
  for_heads(pool, heads, H * W, [&](int64_t i) {
    kernels().delta({q.typed_data() + i * H, k.typed_data() + i * H, v.typed_data() + i * W, memory.typed_data() + i * H * W,
                     std::exp(log_decay.typed_data()[i]), beta.typed_data()[i], H, W, out->typed_data() + i * W,
                     new_memory->typed_data() + i * H * W});
  });
  return ffi::Error::Success();
}

// x [B, N, H], log_decay [B, N], b and c [B, K, W], memory [B, N, H, W] -> out [B, N, H], the new memory. N / K consecutive heads share b
// and c.
ffi::Error scan_step(ffi::ThreadPool pool, F32 x, F32 log_decay, F32 b, F32 c, F32 memory, ffi::Result<F32> out,
                     ffi::Result<F32> new_memory) {
  const auto shape = memory.dimensions();
  const int64_t N = shape[1], heads = shape[0] * N, H = shape[2], W = shape[3], K = b.dimensions()[1];
  for_heads(pool, heads, H * W, [&](int64_t i) {
    const int64_t direction = i / (N / K) * W;
    kernels().scan({x.typed_data() + i * H, b.typed_data() + direction, c.typed_data() + direction, memory.typed_data() + i * H * W,
                    std::exp(log_decay.typed_data()[i]), H, W, out->typed_data() + i * H, new_memory->typed_data() + i * H * W});
  });
  return ffi::Error::Success();
}

}  // namespace

extern "C" __attribute__((visibility("default"))) XLA_FFI_Error* DeltaStep(XLA_FFI_CallFrame*);
XLA_FFI_DEFINE_HANDLER_SYMBOL(DeltaStep, delta_step,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<F32>().Arg<F32>().Arg<F32>().Arg<F32>().Arg<F32>().Arg<F32>()
                                  .Ret<F32>().Ret<F32>());

extern "C" __attribute__((visibility("default"))) XLA_FFI_Error* ScanStep(XLA_FFI_CallFrame*);
XLA_FFI_DEFINE_HANDLER_SYMBOL(ScanStep, scan_step,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<F32>().Arg<F32>().Arg<F32>().Arg<F32>().Arg<F32>()
                                  .Ret<F32>().Ret<F32>());
