/*
 * What a caller's rknn_matmul_info asks for, read as the simulated version reads it, and whether the chip does it.
 */
#ifndef SIM_REQUEST_H
#define SIM_REQUEST_H

#include <stdbool.h>
#include <stdint.h>

#include "settings.h"

typedef struct {
  rknn_matmul_shape shape;
  rknn_matmul_type type;
  int b_layout, ac_layout; /* numbers of rknn_matmul_layout once checked */
  int b_quant, ac_quant;   /* as the caller gave them */
  int domain;
  int group_size;

  /* From b_quant and ac_quant, once checked. */
  sim_granularity b_granularity;
  bool b_asymmetric, ac_asymmetric;
} sim_request;

sim_request sim_read_request(const sim_runtime *runtime, const void *info);

/*
 * Whether the struct is that of another version's header, as far as that shows: a log line says so in the name of
 * function. RKNN_SUCC, or the code of what cannot be gone on with.
 */
int sim_check_struct(const sim_settings *settings, const char *function, const void *info);

/*
 * The checks of create in the recorded order: type, K limit, K alignment, N alignment; then what was not recorded.
 * RKNN_SUCC, or the code with its log line in the name of function. sim_check_type puts the type into *type.
 */
int sim_check_type(const sim_settings *settings, const char *function, const sim_request *request,
                   const sim_type **type);
int sim_check_shape(const sim_settings *settings, const char *function, const sim_type *type, rknn_matmul_shape shape);
int sim_check_options(const sim_settings *settings, const char *function, const sim_type *type, sim_request *request);

/* After sim_check_options: what of the options depends on the shape. */
int sim_check_shape_options(const sim_settings *settings, const char *function, const sim_type *type,
                            const sim_request *request, rknn_matmul_shape shape);

#endif
