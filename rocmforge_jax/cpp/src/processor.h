// Which of the compiled kernels this processor can run.
#pragma once

#include "kernels.h"

// Those in use: the quickest that the processor can run, or the one that `use_kernels` chose.
const Kernels& kernels();
