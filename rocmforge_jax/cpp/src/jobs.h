// Code that the custom calls of products share: reading their attributes, and the sizes for dividing the work.
#pragma once

#include <cstdlib>
#include <cstring>
#include <vector>

#include "kernels.h"
#include "processor.h"
#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace {

// With at most kFew rows of activations, products are bound by memory rather than by arithmetic.
constexpr int64_t kFew = 8;
// Rows of activations that are quantised at a time.
constexpr int64_t kSlab = 512;
// Multiplications that justify one more thread.
constexpr int64_t kWorthAThread = 1 << 16;

constexpr int64_t kNumbersOfWeight = 7;

// Reads the attribute `jobs`, which `products.py` writes. For each job, it has the number of weights, the activation function, and whether
// there is a residual. For each weight of a job, it has whether there is a scale, whether there is a bias, and the numbers of the packing.
// `factors` has alpha and limit of each job's function.
inline ffi::Error read_jobs(ffi::RemainingArgs args, ffi::RemainingRets outs, ffi::Span<const int64_t> numbers,
                            ffi::Span<const uint8_t> tables, ffi::Span<const float> factors, std::vector<Job>& jobs) {
  size_t at = 0, arg = 0, table = 0;
  ffi::Error error = ffi::Error::Success();
  ffi::Span<const int64_t> shape;
  const auto next = [&]() -> void* {
    auto buffer = args.get<ffi::AnyBuffer>(arg++);
    if (!buffer) return error = buffer.error(), nullptr;
    shape = buffer->dimensions();
    return buffer->untyped_data();
  };
  while (at < numbers.size()) {
    Job job{};
    job.weight_count = (int)numbers[at];
    job.function = {(FunctionName)numbers[at + 1], factors[2 * jobs.size()], factors[2 * jobs.size() + 1]};
    const bool has_residual = numbers[at + 2];
    at += 3;
    for (int i = 0; i < job.weight_count; i++, at += 2 + kNumbersOfWeight, table += 16) {
      const bool has_scale = numbers[at], has_bias = numbers[at + 1];
      const int64_t* n = numbers.begin() + at + 2;
      Weight w{n[0], n[1], n[2], n[3], n[4], n[5], n[6], tables.begin() + table};
      w.codes = (const uint32_t*)next();
      if (error.failure()) return error;
      // Stacks of matrices have one more axis, the first.
      w.rows = shape[shape.size() - 3], w.groups = shape[shape.size() - 1];
      if (w.scale_kind != kE8M0 && w.scale_kind != kE4M3) w.d = next();
      if (w.scale_kind != kD) w.scale = (const uint8_t*)next();
      if (!kernels().supports(w)) return ffi::Error::InvalidArgument("no code for this packing");
      job.rows = w.rows;
      job.weights[i] = w;
      if (has_scale) job.scales[i] = (const float*)next();
      if (has_bias) job.biases[i] = (const float*)next();
    }
    if (has_residual) job.residual = (const float*)next();
    if (error.failure()) return error;
    auto out = outs.get<ffi::AnyBuffer>(jobs.size());
    if (!out) return out.error();
    job.out = (float*)(*out)->untyped_data();
    jobs.push_back(job);
  }
  return error;
}

// Returns the fastest method for `count` rows of activations. parts: as in `Inputs`.
inline const Way& way_for(const std::vector<Job>& jobs, int parts, int64_t count) {
  if (count <= kFew) return kernels().gemv;
  bool halves = false;
  for (const Job& job : jobs)
    for (int i = 0; i < job.weight_count; i++) halves |= job.weights[i].halves == 2;
  return parts == 1 && halves ? kernels().skinny_gemm_of_halves : kernels().skinny_gemm;
}

// Returns aligned memory that a thread reuses, because allocating costs more than the product with a small matrix.
inline char* kept(std::vector<char>& memory, size_t size) {
  if (memory.size() < size + 64) memory.resize(size + 64);
  return (char*)(((uintptr_t)memory.data() + 63) / 64 * 64);
}

}  // namespace
