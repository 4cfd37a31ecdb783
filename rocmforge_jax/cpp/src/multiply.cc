// Products of activations with packed weights on a CPU, as an XLA custom call, like `pallas_kernels.qmatmul` on a GPU.

#include <algorithm>
#include <array>

#include "forms.h"
#include "jobs.h"
#include "team.h"

namespace {

ffi::Error multiply(ffi::ThreadPool pool, ffi::Buffer<ffi::F32> x, ffi::Buffer<ffi::F32> norm, ffi::RemainingArgs args,
                    ffi::RemainingRets outs, ffi::Span<const int64_t> numbers, ffi::Span<const uint8_t> tables,
                    ffi::Span<const float> factors, int64_t parts, float epsilon) {
  std::vector<Job> jobs;
  if (auto error = read_jobs(args, outs, numbers, tables, factors, jobs); error.failure()) return error;
  const int64_t M = x.dimensions()[0], K = x.dimensions()[1];
  const Inputs in{x.typed_data(), norm.element_count() ? norm.typed_data() : nullptr, epsilon, K / kGroup, (int)parts};
  const Way& way = way_for(jobs, in.parts, M);

  int64_t rows = 0;
  for (const Job& job : jobs) rows += job.rows * job.weight_count;
  const int64_t threads = std::clamp<int64_t>(rows * K * M / kWorthAThread, 1, std::max<int64_t>(pool.num_threads(), 1));
  Team team(pool, threads - 1);

  // Eight pieces of work per thread, so that no thread waits long for the last one.
  const int64_t piece = std::clamp<int64_t>(rows / (8 * threads) / way.unit * way.unit, way.unit, 256);
  struct Piece {
    const Job* job;
    int64_t first, last;
  };
  std::vector<Piece> pieces;
  for (const Job& job : jobs)
    for (int64_t first = 0; first < job.rows; first += piece) pieces.push_back({&job, first, std::min(first + piece, job.rows)});

  static thread_local std::vector<char> quantized;
  const int64_t tile_bytes = way.bytes(in);
  for (int64_t slab = 0; slab < M; slab += kSlab) {
    const int64_t count = std::min(kSlab, M - slab), tiles = (count + way.tile - 1) / way.tile;
    char* x_tiles = kept(quantized, tiles * tile_bytes);
    const auto quantize = [&](int64_t tile) {
      for (int64_t m = tile * way.tile; m < std::min(count, (tile + 1) * way.tile); m++)
        way.quantize(in, slab + m, x_tiles + tile * tile_bytes, m % way.tile);
    };
    if (tiles == 1) quantize(0);
    else team.run(tiles, quantize);
    team.run(pieces.size(), [&](int64_t i) {
      static thread_local std::vector<char> scratch;
      const Piece& p = pieces[i];
      way.multiply(*p.job, in, x_tiles, slab, count, p.first, p.last, kept(scratch, way.scratch(*p.job, count)));
    });
  }
  return ffi::Error::Success();
}

template <typename... Each>
constexpr auto numbers_of(List<Each...>) {
  return std::array<std::array<int64_t, 4>, sizeof...(Each)>{{{Each::kBits, Each::kTable, Each::kHalves, Each::kMinimum}...}};
}

}  // namespace

// Writes the numbers of the form at `index`: bits, table, halves, minimum. Returns whether there is a form at `index`.
extern "C" __attribute__((visibility("default"))) bool packing_form(int index, int64_t* form) {
  static constexpr auto kForms = numbers_of(Forms{});
  if (index < 0 || index >= (int)kForms.size()) return false;
  std::copy(kForms[index].begin(), kForms[index].end(), form);
  return true;
}

extern "C" __attribute__((visibility("default"))) XLA_FFI_Error* Multiply(XLA_FFI_CallFrame*);
XLA_FFI_DEFINE_HANDLER_SYMBOL(Multiply, multiply,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .RemainingArgs()
                                  .RemainingRets()
                                  .Attr<ffi::Span<const int64_t>>("jobs")
                                  .Attr<ffi::Span<const uint8_t>>("tables")
                                  .Attr<ffi::Span<const float>>("factors")
                                  .Attr<int64_t>("parts")
                                  .Attr<float>("epsilon"));
