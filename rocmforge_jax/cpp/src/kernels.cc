// The products for one set of instructions: compiled several times, with VARIANT for the name of what it offers.

#include "attention.h"
#include "few_rows.h"
#include "many_rows.h"

namespace {
bool supports(const Weight& w) { return few_rows::functions(w) != nullptr; }
}  // namespace

extern "C" const Kernels VARIANT;
const Kernels VARIANT = {
    ISA,
    supports,
    {1, few_rows::kRows, few_rows::bytes, few_rows::quantize, few_rows::scratch, few_rows::multiply},
    {many_rows::kTile, many_rows::kUnit, many_rows::bytes, many_rows::quantize, many_rows::scratch, many_rows::multiply},
    attention::kQueries,
    attention::scratch,
    attention::attend,
};
