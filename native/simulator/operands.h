/*
 * Where a run finds a tensor: in place, or as a copy where the memory cannot be touched or is laid out otherwise.
 */
#ifndef SIM_OPERANDS_H
#define SIM_OPERANDS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "context.h"

typedef struct {
  uint8_t *data;
  uint8_t *copy; /* NULL: in place */
  size_t held;   /* bytes of the copy that are inside the memory; the others read as zeros and are not written */
} sim_operand;

/*
 * The first bytes of what is bound, which may reach beyond the memory if copied. RKNN_SUCC, or a code with its log line
 * in the name of function.
 */
int sim_operand_open(const sim_binding *binding, size_t bytes, bool copied, const char *function, sim_operand *operand);

/* Writes a copy back. */
int sim_operand_store(const sim_binding *binding, const sim_operand *operand, const char *function);

void sim_operand_close(sim_operand *operand);

/* How many of so many bytes are inside the memory. */
size_t sim_bytes_inside(const sim_binding *binding, size_t bytes);

#endif
