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
#include "file.h"
#include "layout.h"
#include "memory.h"
#include "quant.h"
#include "settings.h"

/* A tensor that is used in place. It keeps the memory's record and pages, so that nothing dangles. */
typedef struct {
  sim_memory *memory; /* NULL: not set */
  size_t start;       /* of the tensor in the memory's backing */
} sim_binding;

typedef struct {
  size_t M, K, N;
  sim_b_shape b_shape;
  rknn_matmul_io_attr attr;
} sim_shape;

/* File descriptors that runtime 1.6.0 holds for each context (facts 15); what later ones hold is not known. */
enum { SIM_CONTEXT_DESCRIPTORS = 4 };

typedef struct sim_context {
  sim_settings settings; /* as they were at create */
  const sim_chip *chip;
  const sim_type *type;
  rknn_matmul_layout b_layout;
  bool native_ac;
  int domain;
  sim_granularity b_granularity;
  size_t group_size; /* of B's scales, along K; only with PER_GROUP */
  bool b_asymmetric, ac_asymmetric;
  sim_quant quant;
  int core_mask;
  sim_timing timing; /* the chip's, or what the settings say instead */

  bool dynamic;
  sim_shape *shapes;
  size_t shape_count;
  const sim_shape *now; /* one of shapes; NULL in a dynamic context before the first set_dynamic_shape */

  sim_binding a, b, c;
  sim_backing *packed_b; /* the hidden native copy of a B given in another layout, with room for the largest shape */
  bool packed_b_filled;
  int64_t last_run_us; /* by the wall clock, or modelled where the settings say so */

  int descriptors[SIM_CONTEXT_DESCRIPTORS]; /* of a file of the context's own; their number is all that matters */
  int descriptor_count;
  sim_file_id file;

  /* of the registry, guarded by its lock */
  rknn_context handle;
  bool entered;
  struct sim_context *next;
} sim_context;

/* How the elements of a tensor type lie in memory. */
sim_element sim_element_of(const sim_runtime *runtime, rknn_tensor_type dtype);

/* Frees a context that no registry knows any more. */
void sim_context_free(sim_context *context);

void sim_release_binding(sim_binding *binding);

#endif
