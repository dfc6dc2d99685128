/*
 * npumm_sim_run_seconds: the model of time, for callers.
 */
#include <stddef.h>

#include "export.h"
#include "npumatmul_sim.h"
#include "settings.h"
#include "timing.h"

SIM_EXPORT double npumm_sim_run_seconds(const char *soc, int type, int M, int K, int N, int cores, int native) {
  const sim_chip *chip = soc ? sim_find_chip(soc) : NULL;
  const sim_type *of = chip ? sim_find_type(chip, (rknn_matmul_type)type) : NULL;
  if (!of || M < 1 || K < 1 || N < 1 || cores < 1 || cores > chip->cores) return -1;
  const sim_settings settings = sim_current_settings();
  const sim_timing timing = sim_timing_of(chip, &settings.constants);
  return sim_run_seconds(&timing, of, (size_t)M, (size_t)K, (size_t)N, cores, native != 0);
}
