/* Chooses the loops of attention for the machine that the library runs on. */
#include <stdatomic.h>

#include "attend.h"

#if defined(__x86_64__)
#include <cpuid.h>

/* Older clangs do not know "f16c" in __builtin_cpu_supports. That the system saves AVX registers, avx2 has shown. */
static int has_f16c(void) {
  unsigned eax, ebx, ecx, edx;
  return __get_cpuid(1, &eax, &ebx, &ecx, &edx) && (ecx & bit_F16C);
}
#endif

static const npumm_attend_loops *choose(void) {
#if defined(__x86_64__)
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma") || !has_f16c()) return &npumm_attend_scalar;
  const int wide = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw");
  const int whole = __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  return wide && whole ? &npumm_attend_avx512 : &npumm_attend_avx2;
#elif defined(__aarch64__)
  return &npumm_attend_neon;
#else
  return &npumm_attend_scalar;
#endif
}

const npumm_attend_loops *npumm_attend_chosen(void) {
  static const npumm_attend_loops *_Atomic chosen;
  const npumm_attend_loops *loops = atomic_load_explicit(&chosen, memory_order_relaxed);
  if (!loops) {
    loops = choose(); /* by several threads at once perhaps: they choose the same */
    atomic_store_explicit(&chosen, loops, memory_order_relaxed);
  }
  return loops;
}
