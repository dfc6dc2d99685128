/* The sums of rounding.h for x86-64 with AVX2. */
#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2"))), apply_to = function)
#else
#pragma GCC target("avx2")
#endif
#define ROUNDING_SUMS npumm_rounding_sums_avx2
#include "rounding_loops.h"
#if defined(__clang__)
#pragma clang attribute pop
#endif
#else
typedef int npumm_rounding_avx2_is_empty_here;
#endif
