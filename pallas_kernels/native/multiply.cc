// Products of activations with packed weights on a CPU, as an XLA custom call: `pallas_kernels.qmatmul.few_rows` in C++.
//
// Planes lie as `pallas_kernels.packing` says. A vector holds the words of LANES groups of one row of a weight, so the sums over a
// group stay in their lane, scales are multiplied LANES at a time, and lanes are added up once a row.

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdlib>
#include <memory>
#include <thread>
#include <vector>

#include "vectors.h"
#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace {

constexpr int kGroup = 32, kPositions = 8;
// Rows of a weight that are multiplied side by side, and rows of activations: what the registers and the first cache hold.
constexpr int kRows = 4, kBatch = 16;
// Rows of activations that are quantised at a time.
constexpr int64_t kSlab = 64;

enum Scale : int64_t { kD, kInt8, kNibbles, kBytes, kE8M0, kE4M3 };  // the order of api.py

// ---------------------------------------------------------------------------------------------------------------- weights

struct Weight {
  int64_t bits, offset, scale_kind, halves, span, minimum, has_table;
  const uint8_t* table;
  const uint32_t* codes;
  const void* d;
  const uint8_t* scale;
  int64_t rows, groups;
};

// Words of groups -> words of their positions, as `packing.position_words`.
template <int kBits>
inline void unpack(const Words* words, Words* positions) {
  int first = 0;
  for (int p = 0; p < kPositions; p++) positions[p] = Words{};
#pragma GCC unroll 4
  for (int part = 8; part; part >>= 1) {
    if (!(kBits & part)) continue;
    const uint32_t mask = ((1u << part) - 1) * 0x01010101u;
#pragma GCC unroll 8
    for (int p = 0; p < kPositions; p++) {
      const int fields = 8 / part;
      const int word = part == 4 ? p % 4 : p / fields, shift = part == 4 ? p / 4 * 4 : p % fields * part;
      positions[p] |= ((words[first + word] >> shift) & mask) << first;
    }
    first += part;
  }
}

// d or m of groups from g on, which `span` of them share. shift: of the half of a word, for pairs of d and m.
inline Floats shared_half(const Weight& w, int64_t row, int64_t g, int count, int shift) {
  const int64_t per_row = w.groups / w.span;
  const auto entry = [&](int64_t i) -> int32_t {
    i += row * per_row;
    return w.minimum ? ((const uint32_t*)w.d)[i] >> shift & 0xFFFF : ((const uint16_t*)w.d)[i];
  };
  Ints bits = {};
  if (w.span == 1) {
    const int64_t first = row * per_row + g;
    bits = w.minimum ? (Ints)((load((const uint32_t*)w.d + first, count) >> shift) & 0xFFFF)
                     : load_narrow((const uint16_t*)w.d + first, count);
  } else if (w.span >= 8 && LANES <= 16) {
    const int64_t first = g / w.span, last = (g + count - 1) / w.span;
    const int32_t low = entry(first), high = entry(last);
    for (int i = 0; i < LANES; i++) bits[i] = i < 8 ? low : high;
  } else {
    for (int i = 0; i < count; i++) bits[i] = entry((g + i) / w.span);
  }
  return half_to_float(bits);
}

// ggml's half of an unsigned float of 4 + 3 bits: `packing.half_float`.
inline float half_float(uint8_t code) {
  code &= 127;
  return code == 127 ? 0.0f : code >> 3 ? std::ldexp(8.0f + (code & 7), (code >> 3) - 11) : std::ldexp((float)(code & 7), -10);
}

inline void scale_and_minimum(const Weight& w, int64_t row, int64_t g, int count, int half, Floats* scale, Floats* minimum) {
  const int64_t at = (row * w.halves + half) * w.groups + g;
  switch (w.scale_kind) {
    case kE8M0: {
      Ints e = load_narrow(w.scale + at, count) - 1;
      *scale = (Floats)((e & (e > 0)) << 23);
      return;
    }
    case kE4M3: {
      *scale = Floats{};
      for (int i = 0; i < count; i++) (*scale)[i] = half_float(w.scale[at + i]);
      return;
    }
    case kInt8:
      *scale = shared_half(w, row, g, count, 0) * to_float(load_narrow((const int8_t*)w.scale + at, count));
      return;
    case kNibbles:
    case kBytes: {
      const Ints pair = w.scale_kind == kNibbles ? load_narrow(w.scale + at, count) : load_narrow((const uint16_t*)w.scale + at, count);
      const int half_bits = w.scale_kind == kNibbles ? 4 : 8;
      *scale = shared_half(w, row, g, count, 0) * to_float(pair & ((1 << half_bits) - 1));
      *minimum = -shared_half(w, row, g, count, 16) * to_float(pair >> half_bits);
      return;
    }
    default:
      *scale = shared_half(w, row, g, count, 0);
      if (w.minimum) *minimum = shared_half(w, row, g, count, 16);
  }
}

// ------------------------------------------------------------------------------------------------------------ activations

// Rows of activations as `qmatmul.activations` has them: bytes by position, scales, and sums of the integers of each half and of all of
// a group, as integers and times the scale. All are padded with zeros to whole vectors.
struct Activations {
  int64_t groups, padded;  // numbers of groups
  int parts;               // 2 where integers are 128 * high + low, 1 where they are a byte
  std::vector<uint32_t> memory;

  int64_t stride() const { return (parts * kPositions + 1 + 3 + 3) * padded; }
  uint32_t* words(int64_t row) { return memory.data() + row * stride(); }
  float* scale(int64_t row) { return (float*)words(row) + parts * kPositions * padded; }
  int32_t* sums(int64_t row) { return (int32_t*)scale(row) + padded; }
  float* scaled_sums(int64_t row) { return (float*)sums(row) + 3 * padded; }

  void reset(int64_t rows, int64_t inputs, int count) {
    groups = inputs / kGroup, padded = (groups + LANES - 1) / LANES * LANES, parts = count;
    const size_t size = rows * stride();
    if (memory.size() < size) memory.resize(size);
  }
};

inline float mean_square(const float* x, int64_t count) {
  float partial[kGroup] = {};
  for (int64_t i = 0; i < count; i += kGroup)
    for (int j = 0; j < kGroup; j++) partial[j] += x[i + j] * x[i + j];
  float total = 0;
  for (float part : partial) total += part;
  return total / count;
}

void quantize(const float* x, const float* norm, float epsilon, Activations& to, int64_t row) {
  const float factor = norm ? 1 / std::sqrt(mean_square(x, to.groups * kGroup) + epsilon) : 1;
  uint32_t* words = to.words(row);
  float *scale = to.scale(row), *scaled_sums = to.scaled_sums(row);
  int32_t* sums = to.sums(row);
  const float top = to.parts == 2 ? 127 * 128 : 127;
  for (int64_t g = 0; g < to.padded; g++) {
    float values[kGroup] = {}, largest = 0, poison = 0;
    if (g < to.groups)
      for (int j = 0; j < kGroup; j++) values[j] = norm ? x[g * kGroup + j] * factor * norm[g * kGroup + j] : x[g * kGroup + j];
    for (float value : values) largest = std::fabs(value) > largest ? std::fabs(value) : largest;
    for (float value : values) poison += value * 0;  // NaN where a value is none or infinite, which then every output is
    const float inverse = largest > 0 ? top / largest : 0;
    int32_t q[kGroup];
    for (int j = 0; j < kGroup; j++) q[j] = (int32_t)std::nearbyintf(values[j] * inverse);
    int8_t high[kGroup], low[kGroup];
    for (int j = 0; j < kGroup; j++) {
      const int32_t upper = to.parts == 2 ? (q[j] + 64) >> 7 : q[j];
      high[j] = upper, low[j] = q[j] - upper * 128;
    }
    for (int p = 0; p < kPositions; p++) {
      std::memcpy(words + p * to.padded + g, high + 4 * p, 4);
      if (to.parts == 2) std::memcpy(words + (kPositions + p) * to.padded + g, low + 4 * p, 4);
    }
    int32_t halves[2] = {};
    for (int j = 0; j < kGroup; j++) halves[j / 16] += q[j];
    const float d = largest / top + poison;
    const int32_t three[3] = {halves[0], halves[1], halves[0] + halves[1]};
    scale[g] = d;
    for (int i = 0; i < 3; i++) sums[i * to.padded + g] = three[i], scaled_sums[i * to.padded + g] = three[i] * d;
  }
}

// --------------------------------------------------------------------------------------------------------------- products

template <typename Vector>
inline Vector whole(const void* p) {
  Vector vector;
  std::memcpy(&vector, p, sizeof vector);
  return vector;
}

// The products of kRows rows of a weight, from `first` on, with `batch` rows of activations: out[r][m].
template <int kBits, bool kTable, int kHalves, int kParts>
void block(const Weight& w, int64_t first, Activations& x, int64_t m0, int batch, float out[kRows][kBatch]) {
  constexpr bool kSigned = kBits == 8 || kTable;  // bytes are made unsigned by adding 128
  const int32_t offset = kSigned ? 128 : w.offset;
  Floats total[kRows][kBatch] = {};
  for (int64_t g = 0; g < w.groups; g += LANES) {
    const int count = (int)std::min<int64_t>(LANES, w.groups - g);
    Words codes[kRows][kPositions];
    Floats scale[kRows][kHalves], minimum[kRows][kHalves] = {};
    for (int r = 0; r < kRows; r++) {
      const int64_t row = std::min(first + r, w.rows - 1);
      Words words[kBits];
#pragma GCC unroll 8
      for (int i = 0; i < kBits; i++) {
        const uint32_t* from = w.codes + (row * kBits + i) * w.groups + g;
        words[i] = load(from, count);
        __builtin_prefetch(from + kRows * kBits * w.groups);
      }
      unpack<kBits>(words, codes[r]);
      for (int p = 0; p < kPositions; p++) {
        if (kTable) codes[r][p] = look_up(codes[r][p], w.table);
        if (kSigned) codes[r][p] ^= 0x80808080u;
      }
      for (int h = 0; h < kHalves; h++) scale_and_minimum(w, row, g, count, h, &scale[r][h], &minimum[r][h]);
    }
    for (int m = 0; m < batch; m++) {
      const uint32_t* words = x.words(m0 + m) + g;
      const Floats x_scale = whole<Floats>(x.scale(m0 + m) + g);
      for (int h = 0; h < kHalves; h++) {
        Ints high[kRows] = {}, low[kRows] = {};
#pragma GCC unroll 8
        for (int i = 0; i < kPositions / kHalves; i++) {
          const int p = h * (kPositions / kHalves) + i;
          const Words x_high = whole<Words>(words + p * x.padded);
          for (int r = 0; r < kRows; r++) high[r] = dot4<kSigned>(high[r], codes[r][p], x_high);
          if (kParts == 2) {
            const Words x_low = whole<Words>(words + (kPositions + p) * x.padded);
            for (int r = 0; r < kRows; r++) low[r] = dot4<kSigned>(low[r], codes[r][p], x_low);
          }
        }
        const int64_t of_sum = (kHalves == 1 ? 2 : h) * x.padded + g;
        const Ints lifted = whole<Ints>(x.sums(m0 + m) + of_sum) * offset;
        const Floats scaled_sum = whole<Floats>(x.scaled_sums(m0 + m) + of_sum);
        for (int r = 0; r < kRows; r++) {
          const Ints dot = (kParts == 2 ? high[r] * 128 + low[r] : high[r]) - lifted;
          total[r][m] += to_float(dot) * (scale[r][h] * x_scale) + minimum[r][h] * scaled_sum;
        }
      }
    }
  }
  for (int r = 0; r < kRows; r++)
    for (int m = 0; m < batch; m++) out[r][m] = sum(total[r][m]);
}

using Block = void (*)(const Weight&, int64_t, Activations&, int64_t, int, float[kRows][kBatch]);

template <int kBits, bool kTable, int kHalves>
Block block_of(int parts) {
  return parts == 2 ? block<kBits, kTable, kHalves, 2> : block<kBits, kTable, kHalves, 1>;
}

template <int kBits, bool kTable = false>
Block block_of(int64_t halves, int parts) {
  return halves == 2 ? block_of<kBits, kTable, 2>(parts) : block_of<kBits, kTable, 1>(parts);
}

// nullptr for what there is no code for.
Block block_of(const Weight& w, int parts) {
  if (w.has_table) return w.bits == 4 ? block_of<4, true>(w.halves, parts) : nullptr;
  switch (w.bits) {
    case 1: return block_of<1>(w.halves, parts);
    case 2: return block_of<2>(w.halves, parts);
    case 3: return block_of<3>(w.halves, parts);
    case 4: return block_of<4>(w.halves, parts);
    case 5: return block_of<5>(w.halves, parts);
    case 6: return block_of<6>(w.halves, parts);
    case 8: return block_of<8>(w.halves, parts);
  }
  return nullptr;
}

// One output [M, rows]: see `qmatmul.api.Product`.
struct Job {
  std::vector<Weight> weights;
  std::vector<Block> blocks;
  const float *bias = nullptr, *residual = nullptr;
  float* out = nullptr;
  int64_t rows = 0;
};

void run(const Job& job, int64_t first, Activations& x, int64_t slab, int64_t m0, int batch) {
  float y[2][kRows][kBatch];
  for (size_t i = 0; i < job.weights.size(); i++) job.blocks[i](job.weights[i], first, x, m0, batch, y[i]);
  for (int m = 0; m < batch; m++)
    for (int r = 0; r < kRows && first + r < job.rows; r++) {
      const int64_t at = (slab + m0 + m) * job.rows + first + r;
      float value = y[0][r][m];
      if (job.weights.size() == 2) value = value / (1 + std::exp(-value)) * y[1][r][m];
      if (job.bias) value += job.bias[first + r];
      if (job.residual) value += job.residual[at];
      job.out[at] = value;
    }
}

// Calls task(0) to task(count - 1) on the threads of the pool and this one, and returns when all are done. Threads take the next task
// when they are ready, so one that wakes late costs nothing.
template <typename Task>
void in_parallel(ffi::ThreadPool& pool, int64_t count, const Task& task) {
  struct Progress {
    std::atomic<int64_t> next{0}, done{0};
  };
  auto progress = std::make_shared<Progress>();
  auto work = [progress, count, &task] {
    for (int64_t i; (i = progress->next.fetch_add(1)) < count;) {
      task(i);
      progress->done.fetch_add(1, std::memory_order_release);
    }
  };
  const int64_t helpers = std::min<int64_t>(pool.num_threads(), count) - 1;
  for (int64_t i = 0; i < helpers; i++) pool.Schedule([work] { work(); });
  work();
  for (int spins = 0; progress->done.load(std::memory_order_acquire) < count; spins++)
    if (spins > 1000) std::this_thread::yield();
}

// ------------------------------------------------------------------------------------------------------------ custom call

constexpr int64_t kNumbersOfWeight = 7;

// What `api.py` wrote into `jobs`: for each job its weights, whether there is a bias, a residual; for each weight the numbers of a packing.
ffi::Error read_jobs(ffi::RemainingArgs args, ffi::RemainingRets outs, ffi::Span<const int64_t> numbers, ffi::Span<const uint8_t> tables,
                     int parts, std::vector<Job>& jobs) {
  size_t at = 0, arg = 0, table = 0;
  const auto next = [&] { return args.get<ffi::AnyBuffer>(arg++); };
  while (at < numbers.size()) {
    Job job;
    const int64_t weights = numbers[at], has_bias = numbers[at + 1], has_residual = numbers[at + 2];
    at += 3;
    for (int64_t i = 0; i < weights; i++, at += kNumbersOfWeight, table += 16) {
      const int64_t* n = numbers.begin() + at;
      Weight w{n[0], n[1], n[2], n[3], n[4], n[5], n[6], tables.begin() + table};
      auto codes = next();
      if (!codes) return codes.error();
      const auto shape = codes->dimensions();
      w.codes = (const uint32_t*)codes->untyped_data(), w.rows = shape[0], w.groups = shape[2];
      if (w.scale_kind != kE8M0 && w.scale_kind != kE4M3) {
        auto d = next();
        if (!d) return d.error();
        w.d = d->untyped_data();
      }
      if (w.scale_kind != kD) {
        auto scale = next();
        if (!scale) return scale.error();
        w.scale = (const uint8_t*)scale->untyped_data();
      }
      job.rows = w.rows;
      job.blocks.push_back(block_of(w, parts));
      if (!job.blocks.back()) return ffi::Error::InvalidArgument("no code for this packing");
      job.weights.push_back(w);
    }
    for (auto [present, pointer] : {std::pair(has_bias, &job.bias), std::pair(has_residual, &job.residual)}) {
      if (!present) continue;
      auto buffer = next();
      if (!buffer) return buffer.error();
      *pointer = (const float*)buffer->untyped_data();
    }
    auto out = outs.get<ffi::AnyBuffer>(jobs.size());
    if (!out) return out.error();
    job.out = (float*)(*out)->untyped_data();
    jobs.push_back(std::move(job));
  }
  return ffi::Error::Success();
}

ffi::Error multiply(ffi::ThreadPool pool, ffi::Buffer<ffi::F32> x, ffi::Buffer<ffi::F32> norm, ffi::RemainingArgs args,
                    ffi::RemainingRets outs, ffi::Span<const int64_t> numbers, ffi::Span<const uint8_t> tables, int64_t parts,
                    float epsilon) {
  std::vector<Job> jobs;
  if (auto error = read_jobs(args, outs, numbers, tables, parts, jobs); !error.success()) return error;
  const int64_t M = x.dimensions()[0], K = x.dimensions()[1];
  const float* scale = norm.element_count() ? norm.typed_data() : nullptr;

  int64_t rows = 0;
  for (const Job& job : jobs) rows += job.rows;
  // Eight pieces of work a thread, so that none waits long for the last.
  const int64_t wanted = rows / (8 * std::max<int64_t>(pool.num_threads(), 1)) / kRows * kRows;
  const int64_t piece = std::clamp<int64_t>(wanted, kRows, 256);
  struct Piece {
    const Job* job;
    int64_t first, last;
  };
  std::vector<Piece> pieces;
  for (const Job& job : jobs)
    for (int64_t first = 0; first < job.rows; first += piece) pieces.push_back({&job, first, std::min(first + piece, job.rows)});

  static thread_local Activations activations;  // kept: fresh memory costs more than the product of a small matrix
  Activations& acts = activations;
  for (int64_t slab = 0; slab < M; slab += kSlab) {
    const int64_t count = std::min(kSlab, M - slab);
    acts.reset(count, K, (int)parts);
    const auto one = [&](int64_t m) { quantize(x.typed_data() + (slab + m) * K, scale, epsilon, acts, m); };
    if (count == 1) one(0);
    else in_parallel(pool, count, one);
    in_parallel(pool, pieces.size(), [&](int64_t i) {
      for (int64_t m = 0; m < count; m += kBatch)
        for (int64_t first = pieces[i].first; first < pieces[i].last; first += kRows)
          run(*pieces[i].job, first, acts, slab, m, (int)std::min<int64_t>(kBatch, count - m));
    });
  }
  return ffi::Error::Success();
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(Multiply, multiply,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .RemainingArgs()
                                  .RemainingRets()
                                  .Attr<ffi::Span<const int64_t>>("jobs")
                                  .Attr<ffi::Span<const uint8_t>>("tables")
                                  .Attr<int64_t>("parts")
                                  .Attr<float>("epsilon"));

extern "C" const char* instruction_set() { return ISA; }
