// What `kernels.cc`, which is compiled once for each set of instructions, offers to `multiply.cc`, which is compiled once.
#pragma once

#include <cstdint>

constexpr int kGroup = 32;

enum Scale : int64_t { kD, kInt8, kNibbles, kBytes, kE8M0, kE4M3 };  // the order of products.py

// A matrix [rows, groups * kGroup] as `pallas_kernels.packing` describes it.
struct Weight {
  int64_t bits, offset, scale_kind, halves, span, minimum, has_table;
  const uint8_t* table;
  const uint32_t* codes;
  const void* d;
  const uint8_t* scale;
  int64_t rows, groups;
};

// One output [M, rows]: see `qmatmul.api.Product`.
struct Job {
  Weight weights[2];
  int weight_count;
  const float *bias, *residual;
  float* out;
  int64_t rows;
};

// Activations [M, groups * kGroup] before they are quantised. norm: the scale of an RMSNorm, or nullptr.
// parts: 2 for integers of 15 bits, 1 for bytes.
struct Inputs {
  const float *x, *norm;
  float epsilon;
  int64_t groups;
  int parts;
};

// Two ways to multiply. Each has its own layout of quantised activations, which are written by tile: `tile` rows at a time.
struct Way {
  int64_t tile;       // rows of activations that lie together
  int64_t unit;       // rows of a weight that are multiplied together
  int64_t (*bytes)(const Inputs&);  // of a tile of quantised activations
  void (*quantize)(const Inputs&, int64_t row, void* tile, int64_t row_of_tile);
  int64_t (*scratch)(const Job&, int64_t count);  // bytes that multiply needs for so many rows of activations
  // Outputs [count, first to last] of `count` rows of activations, the first of them row m of the output.
  void (*multiply)(const Job&, const Inputs&, const void* tiles, int64_t m, int64_t count, int64_t first, int64_t last, void* scratch);
};

// `AttentionRule` of `pallas_kernels.attention`. window and soft_cap are 0, sinks nullptr, in a rule without them.
struct Rule {
  float scale, soft_cap;
  bool causal;
  int64_t window;
  const float* sinks;
};

// One call of attention: see `attention.py`. group: heads of q that share a KV head; width: of a head.
struct Attention {
  const float *q, *keys, *values;
  const int32_t* starts;
  float* out;
  int64_t tokens, kv_heads, group, width, slots;
  Rule rule;
};

struct Kernels {
  const char* name;
  bool (*supports)(const Weight&);
  Way gemv, skinny_gemm;
  // Queries first to last, at most `queries`, of a KV head of sequence b, counted with the heads of the group as the minor axis.
  int64_t queries;
  int64_t (*attend_scratch)(int64_t width);  // floats that it needs
  void (*attend)(const Attention&, int64_t b, int64_t head, int64_t first, int64_t last, float* scratch);
};
