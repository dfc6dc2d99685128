#include "cores.h"

#include "api.h"
#include "context.h"
#include "locks.h"
#include "log.h"
#include "registry.h"

static int runs[SIM_CHIPS][SIM_CORES_MAX];

int sim_core_take(const sim_chip *chip, int core_mask) {
  sim_take(LOCK_CORES);
  int *busy = runs[chip->index], chosen = 0;
  for (int core = 0; core < chip->cores; core++) {
    if (core_mask == 1 << core) chosen = core;
    if (core_mask == RKNN_NPU_CORE_AUTO && busy[core] < busy[chosen]) chosen = core;
  }
  busy[chosen]++;
  sim_give(LOCK_CORES);
  return chosen;
}

void sim_core_give(const sim_chip *chip, int core) {
  sim_take(LOCK_CORES);
  runs[chip->index][core]--;
  sim_give(LOCK_CORES);
}

/* One core at a time: runtimes refuse combined masks for matmul (D12, Q19), and a single-core chip every value. */
int sim_matmul_set_core_mask(rknn_matmul_ctx ctx, rknn_core_mask core_mask) {
  sim_context *context;
  int result = sim_registry_enter(ctx, "rknn_matmul_set_core_mask", &context);
  if (result != RKNN_SUCC) return result;
  int cores = context->chip->cores;
  bool known = core_mask == RKNN_NPU_CORE_AUTO;
  for (int core = 0; core < cores; core++) known = known || (int)core_mask == 1 << core;
  if (cores == 1) known = false;
  if (known) context->core_mask = (int)core_mask;
  const sim_runtime *runtime = context->settings.runtime;
  sim_registry_leave(ctx);
  if (known) return RKNN_SUCC;
  bool hexadecimal = runtime->number >= 200; /* facts 15 */
  if (cores > 1) {
    sim_log_error(hexadecimal ? "Not support core mask: %x, fallback to single core auto mode"
                              : "Not support core mask: %d, fallback to single core auto mode",
                  (int)core_mask);
  }
  sim_log_error("rknn_set_core_mask: failed to set core mask: %d", (int)core_mask);
  return RKNN_ERR_FAIL;
}
