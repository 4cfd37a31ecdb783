// The skinny GEMM with the tiles of AMX. This file is compiled with AVX-512 VNNI and AMX.

#define TILES 1
#include "skinny_gemm.h"

extern "C" const Way skinny_gemm_amx;
const Way skinny_gemm_amx = {skinny_gemm::kTile,    skinny_gemm::kRows,   skinny_gemm::bytes,
                             skinny_gemm::quantize, skinny_gemm::scratch, skinny_gemm::multiply};
