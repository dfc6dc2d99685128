/* Chooses the loops on finished sums for the machine that the library runs on. */
#include "finish.h"

const npumm_finish_kernels *npumm_finish(void) {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl")) {
    return &npumm_finish_avx512;
  }
  if (__builtin_cpu_supports("avx2")) return &npumm_finish_avx2;
#endif
  return &npumm_finish_base;
}
