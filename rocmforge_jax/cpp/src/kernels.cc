// The kernels for one set of instructions. This file is compiled once per set; VARIANT is the name of its table.

#include "attention.h"
#include "gemv.h"
#include "recurrence.h"
#include "skinny_gemm.h"

namespace {
bool supports(const Weight& w) { return gemv::functions(w) != nullptr; }
}  // namespace

extern "C" const Kernels VARIANT;
const Kernels VARIANT = {
    ISA,
    supports,
    {1, gemv::kRows, gemv::bytes, gemv::quantize, gemv::scratch, gemv::multiply},
    {skinny_gemm::kTile, skinny_gemm::kUnit, skinny_gemm::bytes, skinny_gemm::quantize, skinny_gemm::scratch, skinny_gemm::multiply},
    attention::kQueries,
    attention::scratch,
    attention::attend,
    recurrence::delta,
    recurrence::scan,
};
