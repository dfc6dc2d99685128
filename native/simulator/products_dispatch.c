#include "products.h"

#include <stdatomic.h>

#if defined(__x86_64__)
#include <cpuid.h>
#elif defined(__aarch64__)
#include <sys/auxv.h>
#ifndef HWCAP_ASIMDDP
#define HWCAP_ASIMDDP (1u << 20)
#endif
#endif

#if defined(__x86_64__)
/* Older clangs do not know "f16c" in __builtin_cpu_supports. That the system saves AVX registers, avx2 has shown. */
static int has_f16c(void) {
  unsigned eax, ebx, ecx, edx;
  return __get_cpuid(1, &eax, &ebx, &ecx, &edx) && (ecx & bit_F16C);
}
#endif

enum { SETS_MOST = 4 };

static size_t list(const sim_products *found[SETS_MOST]) {
  size_t count = 0;
  found[count++] = &sim_products_scalar;
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c()) {
    found[count++] = &sim_products_avx2;
    if (__builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vnni")) {
      found[count++] = &sim_products_avx512;
#if defined(SIM_KNOWS_AMX)
      if (sim_has_amx()) found[count++] = &sim_products_amx;
#endif
    }
  }
#elif defined(__aarch64__)
  found[count++] = &sim_products_neon;
  if (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) found[count++] = &sim_products_neon_dotprod;
#endif
  return count;
}

const sim_products *sim_products_at(size_t index) {
  const sim_products *found[SETS_MOST];
  return index < list(found) ? found[index] : NULL;
}

/* Asked once: the cpuid instruction costs microseconds, and tens of them in a virtual machine. */
const sim_products *sim_best_products(void) {
  static const sim_products *_Atomic chosen;
  const sim_products *best = atomic_load_explicit(&chosen, memory_order_relaxed);
  if (!best) {
    const sim_products *found[SETS_MOST];
    best = found[list(found) - 1]; /* by several threads at once perhaps: they choose the same */
    atomic_store_explicit(&chosen, best, memory_order_relaxed);
  }
  return best;
}
