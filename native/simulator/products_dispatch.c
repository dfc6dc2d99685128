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

static const sim_products *choose(void) {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c()) return &sim_products_avx2;
#elif defined(__aarch64__)
  return getauxval(AT_HWCAP) & HWCAP_ASIMDDP ? &sim_products_neon_dotprod : &sim_products_neon;
#endif
  return &sim_products_scalar;
}

/* Asked once: the cpuid instruction costs microseconds, and tens of them in a virtual machine. */
const sim_products *sim_best_products(void) {
  static const sim_products *_Atomic chosen;
  const sim_products *best = atomic_load_explicit(&chosen, memory_order_relaxed);
  if (!best) {
    best = choose(); /* by several threads at once perhaps: they choose the same */
    atomic_store_explicit(&chosen, best, memory_order_relaxed);
  }
  return best;
}

size_t sim_all_products(const sim_products **list, size_t max) {
  size_t count = 0;
  if (count < max) list[count++] = &sim_products_scalar;
#if defined(__aarch64__)
  if (count < max) list[count++] = &sim_products_neon;
#endif
  const sim_products *best = sim_best_products();
  for (size_t i = 0; i < count; i++) {
    if (list[i] == best) return count;
  }
  if (count < max) list[count++] = best;
  return count;
}
