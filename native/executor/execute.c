/* One call: its arguments, and which way it goes. See npumatmul_executor.h. */
#include <stddef.h>

#include "crew.h"
#include "deferred.h"
#include "fuse.h"
#include "in_place.h"
#include "on_cpu.h"
#include "profile.h"
#include "ranges.h"
#include "shared_rows.h"

/* Whether every N tile has a core that there is. */
static int cores_are_valid(const npumm_placed_matmul *p) {
  for (int32_t n = 0; n < p->n_count; n++) {
    if (p->tile_cores[n] < 0 || p->tile_cores[n] >= p->core_count) return 0;
  }
  return 1;
}

static int matmul_is_valid(const npumm_placed_matmul *p) {
  const int has_runtime = p && p->runtime && p->runtime->run && p->runtime->set_io_mem;
  return p && (p->turns < 2 || p->range_cores) && (p->on_cpu ? npumm_on_cpu_is_valid(p) : has_runtime) && p->slices &&
         p->b_memories && p->shapes && p->m_ranges && p->n_ranges && (p->tile_cores || p->range_cores) &&
         p->m_count > 0 && p->n_count > 0 && p->slice_count > 0 && p->core_count > 0 && p->a_count > 0 &&
         p->a_count <= NPUMM_A_MOST && (p->row_images == 1 || p->row_images == 2) &&
         (p->range_cores ? npumm_shared_rows_are_valid(p) : cores_are_valid(p)) && npumm_activation_is_valid(p);
}

static int call_is_valid(const npumm_placed_matmul *p, const npumm_call *call) {
  if (p->on_cpu && call && (!call->out || call->a_bound)) return 0;
  return call && !!call->a + !!call->a_deferred + !!call->a_bound == 1 &&
         !!call->out + !!call->out_deferred + !!call->out_bound == 1 && (p->a_memories || call->a_bound) &&
         (p->c_memories || call->out_bound) && (!call->a_deferred || npumm_fuse_is_valid(p, call->a_deferred)) &&
         (!call->out_deferred || npumm_deferred_is_valid(p, call->out_deferred)) && npumm_in_place_is_valid(p, call);
}

npumm_executor *npumm_executor_create(void) { return npumm_crew_create(); }

void npumm_executor_destroy(npumm_executor *executor) { npumm_crew_destroy(executor); }

static int execute(npumm_executor *executor, const npumm_placed_matmul *placed, const npumm_call *call,
                   npumm_report *report) {
  const npumm_report nothing_done = {.step = NPUMM_STEP_NONE};
  npumm_stopped_as(report, &nothing_done);
  if (npumm_crew_is_abandoned(executor)) return npumm_fail(report, NPUMM_STEP_NONE, NPUMM_GIVEN_UP);
  if (!matmul_is_valid(placed) || !call_is_valid(placed, call)) {
    return npumm_fail(report, NPUMM_STEP_ARGUMENTS, NPUMM_BAD_ARGUMENT);
  }
  report->conversions += (call->a_bound ? 0 : 1) + (call->out ? 1 : 0);
  if (call->out_deferred) npumm_deferred_begin(placed, call->out_deferred);
  const int code = placed->range_cores ? npumm_share_rows(executor, placed, call, report)
                                       : npumm_run_ranges(executor, placed, call, report, NULL, NULL);
  if (npumm_crew_is_ended(executor)) return code; /* nobody wants the result */
  return code || !call->out_bound ? code : npumm_in_place_end(placed, call->out_bound, report);
}

int npumm_execute(npumm_executor *executor, const npumm_placed_matmul *placed, const npumm_call *call,
                  npumm_report *report) {
  if (!report) return NPUMM_BAD_ARGUMENT;
  const int64_t begun = npumm_profile_begin(), number = begun && placed ? placed->number : 0;
  const uint64_t before = report->macs + report->cpu_macs;
  const int code = execute(executor, placed, call, report);
  npumm_profile_end(begun, NPUMM_SPAN_CALL, number, -1, 0, (int64_t)(report->macs + report->cpu_macs - before));
  return code;
}
