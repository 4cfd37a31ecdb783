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

// One output [M, rows]: see `qmatmul.product.Product`. scales, biases: of each weight, nullptr where there is none. places: the row of the
// output and of the residual for each row of activations, nullptr where they are the same.
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

// Where a GEMV prefetches weights: `ahead` bytes after those that it multiplies, into the second-level cache or into the first.
struct Prefetch {
  int64_t ahead;
  bool second_level;
};

// The prefetch in use: that of a table of processors, or the one that `set_prefetch` set.
Prefetch prefetch();

// A way to multiply, with its own layout of quantised activations, which has tiles of `tile` rows.
struct Way {
  int64_t tile;       // rows of activations in a tile
  int64_t unit;       // rows of a weight that are multiplied at once
  int64_t (*bytes)(const Inputs&);  // of a tile of quantised activations
  void (*quantize)(const Inputs&, int64_t row, void* tile, int64_t row_of_tile);
  int64_t (*scratch)(const Job&, int64_t count);  // bytes that multiply needs for `count` rows of activations
  // Computes columns first to last of the outputs of `count` rows of activations, the first of which is row m.
  void (*multiply)(const Job&, const Inputs&, const void* tiles, int64_t m, int64_t count, int64_t first, int64_t last, void* scratch);
};

// `AttentionRule` of `pallas_kernels.attention`. window and soft_cap are 0, sinks nullptr, in a rule without them.
struct Rule {
  float scale, soft_cap;
  bool causal;
  int64_t window;
  const float* sinks;
};

// One call of attention: see `attention.py`. filled: how many slots hold tokens, null for starts + tokens; a causal rule ignores it. group:
// heads of q that share a KV head; width: of a head. ring: whether position p is in slot p % slots.
struct Attention {
  const float *q, *keys, *values;
  const int32_t *starts, *filled;
  float* out;
  int64_t tokens, kv_heads, group, width, slots;
  bool ring;
  Rule rule;
};

// A token of one head of the delta rule. memory and new_memory [rows, columns] may be the same; q and k have `rows` numbers, v and out
// `columns`.
struct DeltaHead {
  const float *q, *k, *v, *memory;
  float decay, beta;
  int64_t rows, columns;
  float *out, *new_memory;
};

// A token of one head of a state space. memory and new_memory [rows, columns] may be the same; x and out have `rows` numbers, b and c
// `columns`.
struct ScanHead {
  const float *x, *b, *c, *memory;
  float decay;
  int64_t rows, columns;
  float *out, *new_memory;
};

struct Kernels {
  const char* name;
  bool (*supports)(const Weight&);
  Way gemv, skinny_gemm;
  // Attends with at most `queries` queries, first to last, of a KV head of sequence b. The heads of the group are the minor axis.
  int64_t queries;
  int64_t (*attend_scratch)(int64_t width);  // floats that attend needs
  void (*attend)(const Attention&, int64_t b, int64_t head, int64_t first, int64_t last, float* scratch);
  void (*delta)(const DeltaHead&);
  void (*scan)(const ScanHead&);
};
