// The kernels for one set of instructions. This file is compiled once per set; VARIANT is the name of its table.

#include "attention.h"
#include "dense.h"
#include "gemv.h"
#include "recurrence.h"
#include "skinny_gemm.h"

namespace {
bool supports(const Weight& w) { return gemv::functions(w) != nullptr; }

constexpr Way kSkinnyGemm = {skinny_gemm::kTile,    skinny_gemm::kRows,   skinny_gemm::bytes,
                             skinny_gemm::quantize, skinny_gemm::scratch, skinny_gemm::multiply};
}  // namespace

extern "C" const Kernels VARIANT;
const Kernels VARIANT = {
    ISA,
    supports,
    {1, gemv::kRows, gemv::bytes, gemv::quantize, gemv::scratch, gemv::multiply},
    kSkinnyGemm,
    kSkinnyGemm,
    attention::kQueries,
    attention::scratch,
    attention::attend,
    recurrence::delta,
    recurrence::scan,
    dense::kFew,
    dense::kMostTokens,
    dense::kWidth,
    dense::kScratch,
    dense::multiply,
};
