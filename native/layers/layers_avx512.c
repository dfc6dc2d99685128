/* The loops of layers for x86-64 with AVX-512. */
#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512vl,avx512dq"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512vl,avx512dq")
#endif
#define LAYERS_NAME "avx512"
#define LAYERS_LOOPS npumm_layer_loops_avx512
#include "layers_loops.h"
#if defined(__clang__)
#pragma clang attribute pop
#endif
#else
typedef int npumm_layer_loops_avx512_is_empty_here;
#endif
