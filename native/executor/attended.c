/* Calls for who must not be held up by the runtime. See npumatmul_executor.h. */
#include <stdlib.h>

#include "crew.h"
#include "npumatmul_executor.h"
#include "tile.h"

int npumm_execute_attended(npumm_executor *executor, const npumm_placed_matmul *placed, const npumm_call *call,
                           npumm_report *report, int (*attend)(void)) {
  npumm_crew_attend(executor, attend);
  int code = npumm_execute(executor, placed, call, report);
  if (report && npumm_crew_is_ended(executor)) {
    code = npumm_fail(report, NPUMM_STEP_NONE, npumm_crew_is_abandoned(executor) ? NPUMM_GIVEN_UP : NPUMM_INTERRUPTED);
  }
  npumm_crew_attend(executor, NULL);
  return code;
}

/* One run of one context. */
typedef struct {
  int (*run)(rknn_matmul_ctx);
  rknn_matmul_ctx context;
  int code;
} single;

static void run_single(void *argument, int32_t core) {
  single *own = argument;
  (void)core;
  npumm_crew_depart();
  const int code = own->run(own->context);
  if (!npumm_crew_return()) own->code = code;
}

int npumm_run_attended(npumm_executor *executor, int (*run)(rknn_matmul_ctx), rknn_matmul_ctx context,
                       int (*attend)(void)) {
  if (!executor || !run) return NPUMM_BAD_ARGUMENT;
  if (npumm_crew_is_abandoned(executor)) return NPUMM_GIVEN_UP;
  single *own = malloc(sizeof *own); /* it outlives this call where the run is given up */
  if (!own) return NPUMM_NO_MEMORY;
  const single begun = {run, context, NPUMM_INTERRUPTED};
  *own = begun;
  npumm_crew_attend(executor, attend);
  const int given_up = npumm_crew_run(executor, 1, run_single, own);
  npumm_crew_attend(executor, NULL);
  if (given_up) {
    npumm_crew_leave(executor, free, own);
    return given_up;
  }
  const int code = own->code;
  free(own);
  return code;
}

int32_t npumm_executor_lost(npumm_executor *executor) { return npumm_crew_lost(executor); }
