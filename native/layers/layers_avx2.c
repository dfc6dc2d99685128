/* The loops of layers for x86-64 with AVX2. */
#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2"))), apply_to = function)
#else
#pragma GCC target("avx2")
#endif
#define LAYERS_NAME "avx2"
#define LAYERS_LOOPS npumm_layer_loops_avx2
#include "layers_loops.h"
#if defined(__clang__)
#pragma clang attribute pop
#endif
#else
typedef int npumm_layer_loops_avx2_is_empty_here;
#endif
