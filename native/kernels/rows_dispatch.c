/* Chooses the row kernels for the machine that the library runs on. */
#include <stdatomic.h>

#include "npumatmul_kernels.h"
#include "rows.h"

#if defined(__x86_64__)
#include <cpuid.h>

/* Older clangs do not know "f16c" in __builtin_cpu_supports. That the system saves AVX registers, avx2 has shown. */
static int has_f16c(void) {
  unsigned eax, ebx, ecx, edx;
  return __get_cpuid(1, &eax, &ebx, &ecx, &edx) && (ecx & bit_F16C);
}
#endif

static const npumm_row_kernels *choose(void) {
#if defined(__x86_64__)
  return __builtin_cpu_supports("avx2") && has_f16c() ? &npumm_rows_avx2 : &npumm_rows_scalar;
#elif defined(__aarch64__)
  return &npumm_rows_neon;
#else
  return &npumm_rows_scalar;
#endif
}

/* Asked once: the cpuid instruction costs microseconds, and tens of them in a virtual machine. */
const npumm_row_kernels *npumm_rows(void) {
  static const npumm_row_kernels *_Atomic chosen;
  const npumm_row_kernels *rows = atomic_load_explicit(&chosen, memory_order_relaxed);
  if (!rows) {
    rows = choose(); /* by several threads at once perhaps: they choose the same */
    atomic_store_explicit(&chosen, rows, memory_order_relaxed);
  }
  return rows;
}

const char *npumm_instruction_set(void) { return npumm_rows()->name; }
