// The interface between `kernels.cc`, which is compiled once per set of instructions, and the custom calls, which are compiled once.
#pragma once

#include <cstdint>

constexpr int kGroup = 32;

enum Scale : int64_t { kD, kInt8, kNibbles, kBytes, kE8M0, kE4M3 };  // in the order of products.py

// A matrix [rows, groups * kGroup] as `pallas_kernels.packing` describes it.
struct Weight {
  int64_t bits, offset, scale_kind, halves, span, minimum, has_table;
  const uint8_t* table;
  const uint32_t* codes;
  const void* d;
  const uint8_t* scale;
  int64_t rows, groups;
};

enum FunctionName : int64_t { kNone, kSilu, kGelu, kRelu2, kSwigluOai };  // in the order of products.py

// An activation function: see `pallas_kernels.activation_functions`.
struct Function {
  FunctionName name;
  float alpha, limit;
};

// One output [M, rows]: see `qmatmul.product.Product`. scales, biases: one for each weight, or nullptr. places: the row of the output and
// of the residual for each row of activations; nullptr if they are the same.
struct Job {
  Weight weights[2];
  int weight_count;
  const float *scales[2], *biases[2], *residual;
  Function function;
  float* out;
  int64_t rows;
  const int32_t* places;
};

// Activations [M, groups * kGroup] before quantisation. norm: the scale of an RMSNorm, or nullptr. parts: 2 for 15-bit integers, 1 for
// bytes.
struct Inputs {
  const float *x, *norm;
  float epsilon;
  int64_t groups;
  int parts;
};

// The prefetch of a GEMV: the distances in bytes from the weights that are multiplied to those that go into the first-level and into the
// second-level cache. 0: nothing goes into that level.
struct Prefetch {
  int64_t l1, l2;
};

// The prefetch in use: the default for this processor, or the one that `set_prefetch` set.
Prefetch prefetch();

// A method of multiplication, with its own layout of quantised activations in tiles of `tile` rows.
struct Way {
  int64_t tile;       // rows of activations in a tile
  int64_t unit;       // rows of a weight that are multiplied at once
  int64_t (*bytes)(const Inputs&);  // of a tile of quantised activations
  void (*quantize)(const Inputs&, int64_t row, void* tile, int64_t row_of_tile);
  int64_t (*scratch)(const Job&, int64_t count);  // bytes that multiply needs for `count` rows of activations
  // Computes columns first to last - 1 of the outputs of `count` rows of activations, from row m on.
  void (*multiply)(const Job&, const Inputs&, const void* tiles, int64_t m, int64_t count, int64_t first, int64_t last, void* scratch);
};

// `AttentionRule` of `pallas_kernels.attention`. In a rule without them, window and soft_cap are 0, and sinks is nullptr.
struct Rule {
  float scale, soft_cap;
  bool causal;
  int64_t window;
  const float* sinks;
};

// One call of attention: see `attention.py`. filled: the number of filled slots of each sequence, or nullptr for starts + tokens; a causal
// rule ignores it. group: query heads per KV head. width: the width of a head. ring: whether position p is in slot p % slots.
struct Attention {
  const float *q, *keys, *values;
  const int32_t *starts, *filled;
  float* out;
  int64_t tokens, kv_heads, group, width, slots;
  bool ring;
  Rule rule;
};

// One token of one head of the delta rule. memory and new_memory [rows, columns] may be the same; q and k have `rows` numbers, v and out
// have `columns` numbers.
struct DeltaHead {
  const float *q, *k, *v, *memory;
  float decay, beta;
  int64_t rows, columns;
  float *out, *new_memory;
};

// One token of one head of a state space. memory and new_memory [rows, columns] may be the same; x and out have `rows` numbers, b and c
// have `columns` numbers.
struct ScanHead {
  const float *x, *b, *c, *memory;
  float decay;
  int64_t rows, columns;
  float *out, *new_memory;
};

// The numbers of a dense weight.
enum Number { kFloat32, kFloat16, kBfloat16 };

// x [tokens, inputs] times a dense weight [inputs, outputs], or [outputs, inputs] if it is transposed.
struct Dense {
  const float* x;
  const void* weight;
  Number number;
  bool transposed;
  int64_t tokens, inputs, outputs;
};

// A part of a dense product: the sums over the inputs `from` to to - 1, for the tokens `token` to last_token - 1 and the outputs `first` to
// last - 1. out: [tokens, outputs].
struct Part {
  int64_t from, to, token, last_token, first, last;
  float* out;
};

struct Kernels {
  const char* name;
  bool (*supports)(const Weight&);
  // skinny_gemm_of_halves: for 8-bit activations and weights with a scale for each half of a group.
  Way gemv, skinny_gemm, skinny_gemm_of_halves;
  // Computes attention of the queries first to last - 1, at most `queries`, of a KV head of sequence b. Queries are numbered with the heads
  // of the group as the minor axis.
  int64_t queries;
  int64_t (*attend_scratch)(int64_t width);  // floats that attend needs
  void (*attend)(const Attention&, int64_t b, int64_t head, int64_t first, int64_t last, float* scratch);
  void (*delta)(const DeltaHead&);
  void (*scan)(const ScanHead&);
  // Few rows of activations of a dense product are bound by memory. A part has at most dense_tokens of them, and dense_outputs outputs if
  // they are more than dense_few.
  int64_t dense_few, dense_tokens, dense_outputs, dense_scratch;  // scratch: floats
  void (*multiply_dense)(const Dense&, const Part&, float* scratch);
};
