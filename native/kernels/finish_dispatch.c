/* Chooses the loops on finished sums for the machine that the library runs on. */
#include "finish.h"

#define FOUR(x) x, x, x, x
#define SIXTEEN(x) FOUR(x), FOUR(x), FOUR(x), FOUR(x)
#define SIXTY_FOUR(x) SIXTEEN(x), SIXTEEN(x), SIXTEEN(x), SIXTEEN(x)
#define BLOCK(x) \
  { SIXTY_FOUR(x), SIXTY_FOUR(x), SIXTY_FOUR(x), SIXTY_FOUR(x) }
const double npumm_no_scales[NPUMM_BLOCK] = BLOCK(1.0);
const float npumm_no_factors[NPUMM_BLOCK] = BLOCK(1.0f), npumm_no_summands[NPUMM_BLOCK] = BLOCK(-0.0f);

const npumm_finish_kernels *npumm_finish(void) {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl")) {
    return &npumm_finish_avx512;
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return &npumm_finish_avx2;
#endif
  return &npumm_finish_base;
}
