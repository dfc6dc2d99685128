/* Which inner loops of products the machine can do. */
#include <stdatomic.h>
#include <stddef.h>

#include "multiply.h"

#if defined(__x86_64__)
#include <cpuid.h>

/* Older clangs do not know "f16c" in __builtin_cpu_supports. That the system saves AVX registers, avx2 has shown. */
static int has_f16c(void) {
  unsigned eax, ebx, ecx, edx;
  return __get_cpuid(1, &eax, &ebx, &ecx, &edx) && (ecx & bit_F16C);
}
#elif defined(__aarch64__)
#include <sys/auxv.h>
#ifndef HWCAP_ASIMDDP
#define HWCAP_ASIMDDP (1u << 20)
#endif
#endif

enum { SETS_MOST = 3 };

static int32_t list(const npumm_multipliers *found[SETS_MOST]) {
  int32_t count = 0;
  found[count++] = &npumm_multipliers_scalar;
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c()) {
    found[count++] = &npumm_multipliers_avx2;
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vnni")) {
      found[count++] = &npumm_multipliers_avx512;
    }
  }
#elif defined(__aarch64__)
  found[count++] = &npumm_multipliers_neon;
  if (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) found[count++] = &npumm_multipliers_neon_dotprod;
#endif
  return count;
}

const npumm_multipliers *npumm_multipliers_at(int32_t index) {
  const npumm_multipliers *found[SETS_MOST];
  return index >= 0 && index < list(found) ? found[index] : NULL;
}

/* Asked once: the cpuid instruction costs microseconds, and tens of them in a virtual machine. */
const npumm_multipliers *npumm_multipliers_best(void) {
  static const npumm_multipliers *_Atomic chosen;
  const npumm_multipliers *best = atomic_load_explicit(&chosen, memory_order_relaxed);
  if (!best) {
    const npumm_multipliers *found[SETS_MOST];
    best = found[list(found) - 1]; /* by several threads at once perhaps: they choose the same */
    atomic_store_explicit(&chosen, best, memory_order_relaxed);
  }
  return best;
}
