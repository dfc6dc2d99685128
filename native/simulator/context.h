/*
 * One matmul context.
 */
#ifndef SIM_CONTEXT_H
#define SIM_CONTEXT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "backing.h"
#include "chips.h"
#include "layout.h"
#include "memory.h"

/* A tensor that is used in place. It keeps the memory's record and pages, so that nothing dangles. */
typedef struct {
  sim_memory *memory; /* NULL: not set */
  uint8_t *data;
} sim_binding;

typedef struct {
  const sim_chip *chip;
  const sim_type *type;
  size_t M, K, N;
  rknn_matmul_layout b_layout;
  bool native_ac;
  int domain;
  sim_b_shape b_shape;
  rknn_matmul_io_attr attr;
  sim_binding a, b, c;
  sim_backing *packed_b;  /* the hidden native copy of a B given in another layout, attr.B.size bytes */
  bool packed_b_filled;
  int64_t last_run_us;
} sim_context;

/* How the elements of a tensor type lie in memory. */
sim_element sim_element_of(rknn_tensor_type dtype);

/* Frees a context that no registry knows any more. */
void sim_context_free(sim_context *context);

#endif
