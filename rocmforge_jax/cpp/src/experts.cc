// Products of activations with chosen matrices of a stack (a mixture of experts), as an XLA custom call.

#include <algorithm>

#include "jobs.h"
#include "team.h"

namespace {

// How many pairs of a token and an expert are quantised at a time. Their quantised activations stay in memory until they are multiplied.
constexpr int64_t kPairs = 2048;

// `count` pairs of one expert, from index `first` on in the order of experts.
struct Batch {
  const Way* way;
  Job job;
  int64_t first, count;
  char* tiles;

  int64_t tile_count() const { return (count + way->tile - 1) / way->tile; }
};

// A tile of a batch, or the columns from `first` to `last` of its output.
struct Piece {
  const Batch* batch;
  int64_t first, last;
};

// Matrix e of a stack.
Weight matrix(Weight w, int64_t e) {
  w.codes += e * w.rows * w.bits * w.groups;
  if (w.d) w.d = (const char*)w.d + e * w.rows * (w.groups / w.span) * (w.minimum ? 4 : 2);
  if (w.scale) w.scale += e * w.rows * w.halves * w.groups * (w.scale_kind == kBytes ? 2 : 1);
  return w;
}

// The job for matrix e of the stacks. places: the row of the output for each pair.
Job of_expert(Job job, int64_t e, const int32_t* places) {
  for (int i = 0; i < job.weight_count; i++) {
    job.weights[i] = matrix(job.weights[i], e);
    if (job.scales[i]) job.scales[i] += e;
    if (job.biases[i]) job.biases[i] += e * job.rows;
  }
  job.places = places;
  return job;
}

// Pairs in the order of their experts, and for each expert the index of its first pair. The last entry of `starts` is the number of pairs.
struct Order {
  std::vector<int32_t> pairs, starts;
};

// Sorts pairs by their experts. Ids outside of the stack are clipped.
Order by_expert(const int32_t* experts, int64_t pairs, int64_t count) {
  const auto of = [&](int64_t p) { return std::clamp<int64_t>(experts[p], 0, count - 1); };
  Order order{std::vector<int32_t>(pairs), std::vector<int32_t>(count + 1)};
  for (int64_t p = 0; p < pairs; p++) order.starts[of(p) + 1]++;
  for (int64_t e = 0; e < count; e++) order.starts[e + 1] += order.starts[e];
  std::vector<int32_t> next(order.starts.begin(), order.starts.end() - 1);
  for (int64_t p = 0; p < pairs; p++) order.pairs[next[of(p)]++] = (int32_t)p;
  return order;
}

// jobs: a single one.
std::vector<Batch> batches_of(const std::vector<Job>& jobs, int parts, const Order& order) {
  std::vector<Batch> batches;
  for (size_t e = 0; e + 1 < order.starts.size(); e++)
    for (int64_t first = order.starts[e], end = order.starts[e + 1]; first < end; first += kSlab) {
      const int64_t count = std::min(kSlab, end - first);
      batches.push_back({&way_for(jobs, parts, count), of_expert(jobs[0], (int64_t)e, order.pairs.data()), first, count, nullptr});
    }
  return batches;
}

// Multiplies some batches. Row p of the output is computed from row p / share of the activations.
void multiply_batches(Team& team, int64_t threads, const Inputs& in, const Order& order, int64_t share, Batch* begin, Batch* end) {
  std::vector<Piece> tiles, pieces;
  int64_t bytes = 0, rows = 0;
  for (Batch* b = begin; b < end; b++) {
    bytes += b->tile_count() * b->way->bytes(in);
    rows += b->job.rows * b->job.weight_count;
  }
  static thread_local std::vector<char> quantized;
  char* to = kept(quantized, bytes);
  for (Batch* b = begin; b < end; to += b->tile_count() * b->way->bytes(in), b++) {
    b->tiles = to;
    for (int64_t i = 0; i < b->tile_count(); i++) tiles.push_back({b, i * b->way->tile, std::min(b->count, (i + 1) * b->way->tile)});
    // The size of a piece is computed as in multiply.cc.
    const int64_t unit = b->way->unit, piece = std::clamp<int64_t>(rows / (8 * threads) / unit * unit, unit, 256);
    for (int64_t first = 0; first < b->job.rows; first += piece) pieces.push_back({b, first, std::min(first + piece, b->job.rows)});
  }
  team.run(tiles.size(), [&](int64_t i) {
    const Batch& b = *tiles[i].batch;
    char* tile = b.tiles + tiles[i].first / b.way->tile * b.way->bytes(in);
    for (int64_t m = tiles[i].first; m < tiles[i].last; m++) b.way->quantize(in, order.pairs[b.first + m] / share, tile, m % b.way->tile);
  });
  team.run(pieces.size(), [&](int64_t i) {
    static thread_local std::vector<char> scratch;
    const Batch& b = *pieces[i].batch;
    char* memory = kept(scratch, b.way->scratch(b.job, b.count));
    b.way->multiply(b.job, in, b.tiles, b.first, b.count, pieces[i].first, pieces[i].last, memory);
  });
}

// x [M, K], experts [P], stacks of matrices -> [P, N]: row p is row p / (P / M) of x times matrix experts[p].
ffi::Error multiply_experts(ffi::ThreadPool pool, ffi::Buffer<ffi::F32> x, ffi::Buffer<ffi::F32> norm, ffi::Buffer<ffi::S32> experts,
                            ffi::RemainingArgs args, ffi::RemainingRets outs, ffi::Span<const int64_t> numbers,
                            ffi::Span<const uint8_t> tables, ffi::Span<const float> factors, int64_t parts, float epsilon) {
  std::vector<Job> jobs;
  if (auto error = read_jobs(args, outs, numbers, tables, factors, jobs); error.failure()) return error;
  if (jobs.size() != 1) return ffi::Error::InvalidArgument("one product with experts at a time");
  const auto stack = args.get<ffi::AnyBuffer>(0);
  if (!stack) return stack.error();
  const Job& job = jobs[0];
  const int64_t M = x.dimensions()[0], K = x.dimensions()[1], P = experts.dimensions()[0];
  const Inputs in{x.typed_data(), norm.element_count() ? norm.typed_data() : nullptr, epsilon, K / kGroup, (int)parts};
  const Order order = by_expert(experts.typed_data(), P, stack->dimensions()[0]);
  std::vector<Batch> batches = batches_of(jobs, in.parts, order);
  const int64_t work = job.rows * job.weight_count * K * P;
  const int64_t threads = std::clamp<int64_t>(work / kWorthAThread, 1, std::max<int64_t>(pool.num_threads(), 1));
  Team team(pool, threads - 1);
  for (size_t first = 0, last; first < batches.size(); first = last) {
    int64_t pairs = 0;
    for (last = first; last < batches.size() && (last == first || pairs + batches[last].count <= kPairs); last++) pairs += batches[last].count;
    multiply_batches(team, threads, in, order, P / M, &batches[first], batches.data() + last);
  }
  return ffi::Error::Success();
}

}  // namespace

extern "C" __attribute__((visibility("default"))) XLA_FFI_Error* MultiplyExperts(XLA_FFI_CallFrame*);
XLA_FFI_DEFINE_HANDLER_SYMBOL(MultiplyExperts, multiply_experts,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::S32>>()
                                  .RemainingArgs()
                                  .RemainingRets()
                                  .Attr<ffi::Span<const int64_t>>("jobs")
                                  .Attr<ffi::Span<const uint8_t>>("tables")
                                  .Attr<ffi::Span<const float>>("factors")
                                  .Attr<int64_t>("parts")
                                  .Attr<float>("epsilon"));
