/* The loops on finished sums for x86-64 with AVX-512. */
#if defined(__x86_64__)
#include <immintrin.h>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,prefer-vector-width=512")
#endif
#define FINISH_AVX
#define FINISH_NAME "avx512"
#define FINISH_KERNELS npumm_finish_avx512
#include "finish_loops.h"
#if defined(__clang__)
#pragma clang attribute pop
#endif
#else
typedef int npumm_finish_avx512_is_empty_here;
#endif
