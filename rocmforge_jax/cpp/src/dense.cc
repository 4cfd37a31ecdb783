// Products of a few rows of activations with a dense weight, as an XLA custom call. The arithmetic is in `dense.h`.

#include <algorithm>
#include <vector>

#include "processor.h"
#include "team.h"
#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace {

// Multiplications that justify one more thread.
constexpr int64_t kWorthAThread = 1 << 15;
// Outputs of a part with few rows of activations: of a weight [inputs, outputs], whose rows are read in runs so long, and of a weight
// [outputs, inputs].
constexpr int64_t kOutputs = 4096, kOutputsOfTransposed = 32;
// For few rows, narrow weights [inputs, outputs] are also divided by their inputs, into about kParts parts of at least kInputs inputs.
constexpr int64_t kParts = 16, kInputs = 64;

int64_t quotient_above(int64_t a, int64_t b) { return (a + b - 1) / b; }

// How a product is divided into parts. The inputs are divided in the same way for any number of threads, so results do not depend on it.
struct Division {
  int64_t tokens, outputs;  // of a part
  int64_t splits;           // of the inputs
};

Division divide(const Dense& d, int64_t threads) {
  const Kernels& use = kernels();
  if (d.tokens <= use.dense_few) {
    const int64_t outputs = d.transposed ? kOutputsOfTransposed : kOutputs, most = d.transposed ? 1 : d.inputs / kInputs;
    return {d.tokens, outputs, std::clamp<int64_t>(kParts / quotient_above(d.outputs, outputs), 1, std::max<int64_t>(most, 1))};
  }
  // Four parts per thread, so that no thread waits long for the last one. All have about as many tokens, because each converts weights.
  const int64_t columns = quotient_above(d.outputs, use.dense_outputs), of_most = quotient_above(d.tokens, use.dense_tokens);
  const int64_t slabs = std::clamp(quotient_above(4 * threads, columns), of_most, std::max(of_most, d.tokens / use.dense_few));
  return {quotient_above(d.tokens, slabs), use.dense_outputs, 1};
}

void multiply(ffi::ThreadPool& pool, const Dense& d, float* out) {
  const int64_t work = d.inputs * d.outputs * d.tokens, all = d.tokens * d.outputs;
  const int64_t threads = std::clamp<int64_t>(work / kWorthAThread, 1, std::max<int64_t>(pool.num_threads(), 1));
  const Division by = divide(d, threads);
  const int64_t columns = quotient_above(d.outputs, by.outputs), slabs = quotient_above(d.tokens, by.tokens);
  static thread_local std::vector<float> partial;
  if (by.splits > 1) partial.resize(std::max<size_t>(partial.size(), by.splits * all));
  float* sums = by.splits > 1 ? partial.data() : out;
  const int64_t parts = slabs * columns * by.splits;
  Team team(pool, std::min(threads, parts) - 1);
  team.run(parts, [&](int64_t i) {
    static thread_local std::vector<float> scratch;
    scratch.resize(kernels().dense_scratch);
    const int64_t first = i % columns * by.outputs, split = i / columns % by.splits, token = i / columns / by.splits * by.tokens;
    const auto bound = [&](int64_t at) { return d.inputs * at / by.splits; };
    kernels().multiply_dense(d, {bound(split), bound(split + 1), token, std::min(token + by.tokens, d.tokens), first,
                                 std::min(first + by.outputs, d.outputs), sums + split * all}, scratch.data());
  });
  if (by.splits == 1) return;
  std::copy_n(sums, all, out);
  for (int64_t split = 1; split < by.splits; split++)
    for (int64_t i = 0; i < all; i++) out[i] += sums[split * all + i];
}

// x [M, K], weight [K, N], or [N, K] if it is transposed -> [M, N].
ffi::Error multiply_dense(ffi::ThreadPool pool, ffi::Buffer<ffi::F32> x, ffi::AnyBuffer weight, ffi::Result<ffi::Buffer<ffi::F32>> out,
                          bool transposed) {
  Number number;
  switch (weight.element_type()) {
    case ffi::F32: number = kFloat32; break;
    case ffi::F16: number = kFloat16; break;
    case ffi::BF16: number = kBfloat16; break;
    default: return ffi::Error::InvalidArgument("no code for the numbers of this weight");
  }
  const auto shape = x.dimensions();
  multiply(pool, {x.typed_data(), weight.untyped_data(), number, transposed, shape[0], shape[1], out->dimensions()[1]}, out->typed_data());
  return ffi::Error::Success();
}

}  // namespace

extern "C" __attribute__((visibility("default"))) XLA_FFI_Error* MultiplyDense(XLA_FFI_CallFrame*);
XLA_FFI_DEFINE_HANDLER_SYMBOL(MultiplyDense, multiply_dense,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::Buffer<ffi::F32>>().Arg<ffi::AnyBuffer>()
                                  .Ret<ffi::Buffer<ffi::F32>>()
                                  .Attr<bool>("transposed"));
