/* Chooses the row kernels for the machine that the library runs on. */
#include "npumatmul_kernels.h"
#include "rows.h"

const npumm_row_kernels *npumm_rows(void) {
#if defined(__x86_64__)
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("f16c") ? &npumm_rows_avx2 : &npumm_rows_scalar;
#elif defined(__aarch64__)
  return &npumm_rows_neon;
#else
  return &npumm_rows_scalar;
#endif
}

const char *npumm_instruction_set(void) { return npumm_rows()->name; }
