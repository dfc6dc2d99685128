#include "calls.h"

#include <pthread.h>

#include "counters.h"
#include "faults.h"
#include "log.h"
#include "rknn_abi.h"
#include "settings.h"
#include "trace.h"

static bool creates(sim_call call) {
  switch (call) {
    case CALL_CREATE:
    case CALL_CREATE_DYN_SHAPE:
    case CALL_CREATE_DYNAMIC_SHAPE:
    case CALL_CREATE_MEM:
    case CALL_CREATE_MEM2:
    case CALL_CREATE_MEM_FROM_FD:
    case CALL_CREATE_MEM_FROM_PHYS:
      return true;
    default:
      return false;
  }
}

/* Nothing is made without a driver that the runtime can work with (facts 15). */
static bool has_driver(sim_call call) {
  const sim_driver driver = sim_current_settings().driver;
  if (driver == DRIVER_MISSING) {
    sim_log_error(
        "failed to open rknpu module, need to insmod rknpu dirver!"); /* as a vendor's does, see docs/board.md */
  } else if (driver == DRIVER_OLD) {
    sim_log_error("%s, simulator: the kernel driver is too old for this runtime", sim_call_symbol(call));
  }
  return driver == DRIVER_OK;
}

sim_entry sim_enter_call(sim_call call) {
  sim_entry entry = {.call = call};
  /* A thread that were cancelled in the middle would leave locks taken and its context in use for ever. */
  pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &entry.cancelling);
  sim_count_call(call);
  if (sim_tracing()) entry.start_us = sim_trace_begin();
  const sim_runtime *runtime = sim_current_runtime();
  if (!sim_call_exists(call, runtime)) {
    /* Only libnpumm_sim.so can come here; the libraries that carry a version in their name export what it has. */
    sim_log_error("%s, simulator: runtime %s has no such function, or another form of it", sim_call_symbol(call),
                  runtime->name);
    entry.refused = true;
    entry.result = RKNN_ERR_FAIL;
    return entry;
  }
  entry.result = sim_faults_inject(call);
  if (entry.result == RKNN_SUCC && creates(call) && !has_driver(call)) entry.result = RKNN_ERR_FAIL;
  entry.refused = entry.result != RKNN_SUCC;
  return entry;
}

int sim_leave_call(const sim_entry *entry) {
  if (entry->result != RKNN_SUCC) sim_count_failure(entry->call);
  if (entry->start_us != 0) sim_trace_end(sim_call_symbol(entry->call), entry->start_us, entry->result);
  pthread_setcancelstate(entry->cancelling, NULL);
  return entry->result;
}

int sim_refuse_model_call(const char *function) {
  sim_log_error("%s, simulator: only the matmul API is simulated, models need a board", function);
  return RKNN_ERR_FAIL;
}
