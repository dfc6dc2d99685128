/*
 * The simulated versions of the vendor's runtime, as data; another version is another row (and a line in
 * CMakeLists.txt). Which functions a version has is in functions.c.
 */
#ifndef SIM_RUNTIMES_H
#define SIM_RUNTIMES_H

#include <stdbool.h>
#include <stdint.h>

/* What the numbers in B_quant_type and AC_quant_type mean (D1). */
typedef enum {
  QUANT_NUMBERS_NONE,          /* the fields do not exist */
  QUANT_NUMBERS_LAYER_CHANNEL, /* 0 per layer, 1 per channel */
  QUANT_NUMBERS_ENUM           /* rknn_matmul_quant_type */
} sim_quant_numbers;

typedef struct {
  const char *name;                         /* "2.3.2" */
  int number;                               /* 232 */
  const char *api_version, *driver_version; /* as rknn_query tells them */
  uint32_t info_bytes;                      /* how much of the caller's rknn_matmul_info is read (facts 1.2) */
  uint32_t types;                           /* bit t: knows matmul type t */
  uint32_t named_types;                     /* bit t: its log lines can name it */
  bool int4_low_first;                      /* the even element of an int4 pair is the low nibble (facts 4.6, D28) */
  bool segments;                            /* stores a deep native B in slices (facts 4.4) */
  bool transposed_b;                        /* knows B_layout TP_NORM */
  sim_quant_numbers quant_numbers;
} sim_runtime;

/* Oldest first; NULL beyond the last one. */
const sim_runtime *sim_runtime_at(int index);

/* NULL for a name that is none. */
const sim_runtime *sim_find_runtime(const char *name);

/* The version that this library was built as; NULL in libnpumm_sim.so, whose version is a setting. version.c. */
extern const char *const sim_library_version;

#endif
