#include "operands.h"

#include <errno.h>
#include <string.h>

#include "log.h"
#include "scratch.h"

size_t sim_bytes_inside(const sim_binding *binding, size_t bytes) {
  size_t inside = binding->memory->backing->limit - binding->start;
  return bytes < inside ? bytes : inside;
}

/* A file that is reached by system calls. */
static void log_unreachable(const sim_binding *binding, const char *function) {
  const int error = errno, fd = binding->memory->shown.fd;
  if (error == ENODATA) {
    sim_log_error("%s, simulator: the file of fd %d has shrunk below the %zu bytes that were wrapped", function, fd,
                  binding->memory->backing->limit);
  } else if (error == EBADF) {
    sim_log_error("%s, simulator: the program closed the descriptor by which the library reaches the file of fd %d",
                  function, fd);
  } else {
    sim_log_error("%s, simulator: the file of fd %d cannot be read and written any more: %s", function, fd,
                  strerror(error));
  }
}

int sim_operand_open(const sim_binding *binding, size_t bytes, bool copied, const char *function,
                     sim_operand *operand) {
  const sim_backing *backing = binding->memory->backing;
  *operand = (sim_operand){0};
  if (backing->device && !copied) {
    operand->data = backing->device + binding->start;
    return RKNN_SUCC;
  }
  operand->held = sim_bytes_inside(binding, bytes);
  operand->data = operand->copy = sim_scratch_take(bytes);
  if (!operand->copy) {
    sim_log_error("%s, simulator: no memory for the run", function);
    return RKNN_ERR_MALLOC_FAIL;
  }
  memset(operand->copy + operand->held, 0, bytes - operand->held);
  if (backing->device) {
    memcpy(operand->copy, backing->device + binding->start, operand->held);
  } else if (!sim_backing_read(backing, binding->start, operand->held, operand->copy)) {
    log_unreachable(binding, function);
    sim_operand_close(operand);
    return RKNN_ERR_FAIL;
  }
  return RKNN_SUCC;
}

int sim_operand_store(const sim_binding *binding, const sim_operand *operand, const char *function) {
  const sim_backing *backing = binding->memory->backing;
  if (!operand->copy) return RKNN_SUCC;
  if (backing->device) {
    memcpy(backing->device + binding->start, operand->copy, operand->held);
  } else if (!sim_backing_write(backing, binding->start, operand->held, operand->copy)) {
    log_unreachable(binding, function);
    return RKNN_ERR_FAIL;
  }
  return RKNN_SUCC;
}

void sim_operand_close(sim_operand *operand) {
  sim_scratch_give(operand->copy);
  *operand = (sim_operand){0};
}
