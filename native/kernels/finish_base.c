/* The loops on finished sums for the instruction set that the library is compiled for: SSE2, or NEON on aarch64. */
#define FINISH_NAME "base"
#define FINISH_KERNELS npumm_finish_base
#include "finish_loops.h"
