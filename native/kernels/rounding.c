/* What rounding the rows of a weight with many scales and zero points costs. */
#include <math.h>

#include "npumatmul_kernels.h"
#include "rounding.h"
#include "tiling.h"

static npumm_rounding_sums_row fastest(void) {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx2")) return npumm_rounding_sums_avx2;
#endif
  return npumm_rounding_sums_base;
}

int npumm_rounding_sums(const float *values, int64_t rows, int64_t cols, const float *weights, int64_t candidates,
                        const float *scale, const int32_t *zero, int32_t qmin, int32_t qmax, double *sums) {
  if (rows < 0 || cols < 0 || candidates < 0 || rows > NPUMM_MAX_EXTENT || cols > NPUMM_MAX_EXTENT ||
      candidates > NPUMM_MAX_EXTENT || qmin < -128 || qmax > 127 || qmin > qmax) {
    return NPUMM_BAD_ARGUMENT;
  }
  if (rows == 0 || candidates == 0) return NPUMM_OK;
  if (!scale || !zero || !sums || ((!values || !weights) && cols > 0)) return NPUMM_BAD_ARGUMENT;
  for (int64_t i = 0; i < rows * candidates; i++) {
    if (!(scale[i] > 0.0f) || !isfinite(scale[i]) || zero[i] < qmin || zero[i] > qmax) return NPUMM_BAD_ARGUMENT;
  }
  const npumm_rounding_sums_row row_sums = fastest();
  for (int64_t r = 0; r < rows; r++) {
    for (int64_t c = 0; c < candidates; c++) {
      const int64_t i = c * rows + r;
      const double unit = (double)scale[i];
      double *result = sums + 3 * i;
      row_sums(values + r * cols, weights, cols, scale[i], (float)(qmin - zero[i]), (float)(qmax - zero[i]), result);
      result[0] *= unit * unit;
      result[1] *= unit;
    }
  }
  return NPUMM_OK;
}
