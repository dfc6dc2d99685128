/* Every core runs its ranges of rows as if it were alone, with its part of contexts and buffers. See shared_rows.h. */
#include "shared_rows.h"

#include <pthread.h>
#include <stddef.h>
#include <stdlib.h>

#include "crew.h"
#include "ranges.h"
#include "tile.h"

typedef struct {
  const npumm_placed_matmul *placed;
  const npumm_call *call;
  int32_t *alone;        /* [n_count] the cores of tiles where there is one core */
  npumm_report *reports; /* [core_count] */
  int32_t npu_cores;
  pthread_mutex_t *turns; /* [npu_cores] held by who runs on the core; NULL where nobody takes turns */
  int32_t first_failed;   /* valid once stop is set */
  atomic_int stop;
} sharing;

int npumm_shared_rows_are_valid(const npumm_placed_matmul *p) {
  int32_t before = 0;
  for (int32_t m = 0; m < p->m_count; m++) {
    if (p->range_cores[m] < before || p->range_cores[m] >= p->core_count) return 0;
    before = p->range_cores[m];
  }
  return p->turns >= 0 && (p->turns == 0 || p->core_count % p->turns == 0) &&
         p->a_count <= NPUMM_A_MOST / p->core_count;
}

static void run_own(void *argument, int32_t core) {
  sharing *shared = argument;
  const npumm_placed_matmul *p = shared->placed;
  npumm_report *report = &shared->reports[core];
  int32_t first = 0, end;
  while (first < p->m_count && p->range_cores[first] != core) first++;
  for (end = first; end < p->m_count && p->range_cores[end] == core;) end++;
  if (first == end || atomic_load(&shared->stop) || npumm_crew_is_ended(NULL)) return;
  npumm_placed_matmul own = *p;
  own.range_cores = NULL;
  own.core_count = 1;
  own.tile_cores = shared->alone;
  own.m_count = end - first;
  own.m_ranges += first;
  own.shapes += (int64_t)first * p->slice_count * p->n_count;
  if (own.a_memories) own.a_memories += (int64_t)core * p->a_count;
  if (own.c_memories) own.c_memories += core;
  npumm_call call = *shared->call;
  npumm_deferred deferred;
  npumm_bound bound;
  if (call.a_bound) call.a_bound += first;
  if (call.out_bound) {
    bound = *call.out_bound;
    bound.parts += first;
    call.out_bound = &bound;
  }
  if (call.out_deferred) {
    deferred = *call.out_deferred; /* nothing is written there but what its pointers point to */
    deferred.memories += (int64_t)first * p->n_count;
    call.out_deferred = &deferred;
  }
  const int32_t npu_core = core / (p->core_count / shared->npu_cores);
  report->core = npu_core;
  pthread_mutex_t *turn = shared->turns ? &shared->turns[npu_core] : NULL;
  const int code = npumm_run_ranges(NULL, &own, &call, report, &shared->stop, turn);
  report->m_index += first;
  report->core = npu_core;
  int going = 0;
  if (code && atomic_compare_exchange_strong(&shared->stop, &going, 1)) shared->first_failed = core;
}

static void release(void *argument) {
  sharing *shared = argument;
  for (int32_t i = 0; shared->turns && i < shared->npu_cores; i++) pthread_mutex_destroy(&shared->turns[i]);
  free(shared->turns);
  free(shared->reports);
  free(shared->alone);
  free(shared);
}

int npumm_share_rows(npumm_executor *executor, const npumm_placed_matmul *placed, const npumm_call *call,
                     npumm_report *report) {
  const size_t cores = (size_t)placed->core_count;
  sharing *shared = calloc(1, sizeof *shared); /* it outlives this call where runs are given up */
  if (!shared) return npumm_fail(report, NPUMM_STEP_ARGUMENTS, NPUMM_NO_MEMORY);
  shared->placed = placed;
  shared->call = call;
  shared->alone = calloc((size_t)placed->n_count, sizeof *shared->alone);
  shared->reports = calloc(cores, sizeof *shared->reports);
  shared->npu_cores = placed->turns > 1 ? placed->core_count / placed->turns : placed->core_count;
  const int takes_turns = placed->turns > 1;
  if (takes_turns) shared->turns = calloc((size_t)shared->npu_cores, sizeof *shared->turns);
  for (int32_t i = 0; shared->turns && i < shared->npu_cores; i++) pthread_mutex_init(&shared->turns[i], NULL);
  const int has_all = shared->alone && shared->reports && (shared->turns || !takes_turns);
  int code = has_all ? 0 : npumm_fail(report, NPUMM_STEP_ARGUMENTS, NPUMM_NO_MEMORY);
  if (!code) {
    if (npumm_crew_run(executor, placed->core_count, run_own, shared)) {
      npumm_crew_leave(executor, release, shared);
      return npumm_fail(report, NPUMM_STEP_RUN, NPUMM_GIVEN_UP);
    }
    if (atomic_load(&shared->stop)) npumm_stopped_as(report, &shared->reports[shared->first_failed]);
    for (size_t core = 0; core < cores; core++) npumm_add_counts(report, &shared->reports[core]);
    code = report->code;
  }
  release(shared);
  return code;
}
