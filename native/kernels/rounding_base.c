/* The sums of rounding.h for the instruction set that the library is compiled for: SSE2, or NEON on aarch64. */
#define ROUNDING_SUMS npumm_rounding_sums_base
#include "rounding_loops.h"
