/* The loops on finished sums for x86-64 with AVX2. */
#if defined(__x86_64__)
#include <immintrin.h>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC target("avx2,fma")
#endif
#define FINISH_AVX
#define FINISH_NAME "avx2"
#define FINISH_KERNELS npumm_finish_avx2
#include "finish_loops.h"
#if defined(__clang__)
#pragma clang attribute pop
#endif
#else
typedef int npumm_finish_avx2_is_empty_here;
#endif
