/* Chooses the row kernels for the machine that the library runs on. */
#include <stdatomic.h>
#include <stddef.h>

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

enum { SETS_MOST = 3 };

static int list(const npumm_row_kernels *found[SETS_MOST]) {
  int count = 0;
  found[count++] = &npumm_rows_scalar;
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c()) {
    found[count++] = &npumm_rows_avx2;
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl")) {
      found[count++] = &npumm_rows_avx512;
    }
  }
#elif defined(__aarch64__)
  found[count++] = &npumm_rows_neon;
#endif
  return count;
}

const npumm_row_kernels *npumm_rows_at(int index) {
  const npumm_row_kernels *found[SETS_MOST];
  return index >= 0 && index < list(found) ? found[index] : NULL;
}

/* Asked once: the cpuid instruction costs microseconds, and tens of them in a virtual machine. */
const npumm_row_kernels *npumm_rows(void) {
  static const npumm_row_kernels *_Atomic chosen;
  const npumm_row_kernels *rows = atomic_load_explicit(&chosen, memory_order_relaxed);
  if (!rows) {
    const npumm_row_kernels *found[SETS_MOST];
    rows = found[list(found) - 1]; /* by several threads at once perhaps: they choose the same */
    atomic_store_explicit(&chosen, rows, memory_order_relaxed);
  }
  return rows;
}

const char *npumm_instruction_set(void) { return npumm_rows()->name; }
