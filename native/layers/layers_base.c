/* The loops of layers for the instruction set that the library is compiled for: SSE2, or NEON on aarch64. */
#define LAYERS_NAME "base"
#define LAYERS_LOOPS npumm_layer_loops_base
#include "layers_loops.h"
