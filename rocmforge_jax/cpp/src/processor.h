// The choice among the compiled kernels.
#pragma once

#include "kernels.h"

// The kernels in use: the fastest that the processor can run, or those that `use_kernels` selected.
const Kernels& kernels();
