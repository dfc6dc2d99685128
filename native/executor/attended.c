/* Calls for who must not be held up by the runtime. See npumatmul_executor.h. */
#define _GNU_SOURCE
#include <stdlib.h>
#include <time.h>

#include "crew.h"
#include "last_resort.h"
#include "npumatmul_executor.h"
#include "profile.h"
#include "tile.h"

static int64_t nanoseconds(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

int npumm_execute_attended(npumm_executor *executor, const npumm_placed_matmul *placed, const npumm_call *call,
                           npumm_report *report, int (*attend)(void)) {
  const int64_t began = nanoseconds();
  npumm_last_resort_arm();
  npumm_crew_attend(executor, attend);
  int code = npumm_execute(executor, placed, call, report);
  if (report && npumm_crew_is_ended(executor)) {
    code = npumm_fail(report, NPUMM_STEP_NONE, npumm_crew_is_abandoned(executor) ? NPUMM_GIVEN_UP : NPUMM_INTERRUPTED);
  }
  npumm_crew_attend(executor, NULL);
  if (report) report->nanoseconds = nanoseconds() - began;
  return code;
}

int npumm_execute_proven(npumm_executor *executor, const npumm_placed_matmul *placed, const npumm_call *call,
                         npumm_report *report) {
  npumm_last_resort_enter();
  const int code = npumm_execute(executor, placed, call, report);
  npumm_last_resort_leave();
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
  const int64_t begun = npumm_profile_begin();
  npumm_crew_depart();
  const int code = own->run(own->context);
  if (npumm_crew_return()) return;
  npumm_profile_end(begun, NPUMM_SPAN_RUN, 0, core, 0, 0);
  own->code = code;
}

int npumm_run_attended(npumm_executor *executor, int (*run)(rknn_matmul_ctx), rknn_matmul_ctx context,
                       npumm_report *report, int (*attend)(void)) {
  if (!executor || !run || !report) return NPUMM_BAD_ARGUMENT;
  if (npumm_crew_is_abandoned(executor)) return npumm_fail(report, NPUMM_STEP_RUN, NPUMM_GIVEN_UP);
  single *own = malloc(sizeof *own); /* it outlives this call where the run is given up */
  if (!own) return npumm_fail(report, NPUMM_STEP_RUN, NPUMM_NO_MEMORY);
  const single begun = {run, context, NPUMM_INTERRUPTED};
  *own = begun;
  npumm_last_resort_arm();
  npumm_crew_attend(executor, attend);
  const int given_up = npumm_crew_run(executor, 1, run_single, own);
  npumm_crew_attend(executor, NULL);
  if (given_up) {
    npumm_crew_leave(executor, free, own);
    return npumm_fail(report, NPUMM_STEP_RUN, given_up);
  }
  const int code = own->code;
  free(own);
  return npumm_fail(report, code ? NPUMM_STEP_RUN : NPUMM_STEP_NONE, code);
}

int npumm_run_proven(int (*run)(rknn_matmul_ctx), rknn_matmul_ctx context) {
  npumm_last_resort_arm();
  npumm_last_resort_enter();
  const int64_t begun = npumm_profile_begin();
  const int code = run(context);
  npumm_profile_end(begun, NPUMM_SPAN_RUN, 0, 0, 0, 0);
  npumm_last_resort_leave();
  return code;
}

int npumm_run_nothing(rknn_matmul_ctx context) {
  (void)context;
  return 0;
}

int32_t npumm_executor_lost(npumm_executor *executor) { return npumm_crew_lost(executor); }
