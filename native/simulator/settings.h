/*
 * What the environment (NPUMATMUL_SIM_*, read once at load) and npumm_sim_configure say. docs/simulator.md lists the
 * settings for users; settings.c has them as a table.
 */
#ifndef SIM_SETTINGS_H
#define SIM_SETTINGS_H

#include <stdbool.h>
#include <stdint.h>

#include "chips.h"
#include "products.h"
#include "runtimes.h"

typedef enum { OVERFLOW_SATURATE, OVERFLOW_WRAP, OVERFLOW_ERROR } sim_overflow;

/*
 * What create does above sim_type.native_rows: it fails, ends the process as a vendor's does (also for any int4 at
 * RKNN_LOG_LEVEL 3 or more), or goes on.
 */
typedef enum { ROWS_REFUSED, ROWS_DEADLY, ROWS_ANY } sim_rows_limit;

/* What the kernel driver is like: there, too old for the runtime, or not to be opened. */
typedef enum { DRIVER_OK, DRIVER_OLD, DRIVER_MISSING } sim_driver;

/* What is known of the time that a board would take: nothing, counted by clock.h, and also waited for (pace.h). */
typedef enum { TIMING_OFF, TIMING_MODEL, TIMING_REALTIME } sim_timing_mode;

/* A context keeps the settings that it was created with. */
typedef struct {
  const sim_chip *chip;
  const sim_runtime *runtime;
  bool documented_limits;
  bool broken;
  sim_overflow overflow; /* of int16 results */
  bool strict;
  bool ceil4;
  sim_rows_limit rows_limit;
  bool idle;         /* runs leave C as it is: for measuring what else takes time */
  bool foreign;      /* rknn_create_mem_from_fd takes memory that this library did not make */
  uint32_t contexts; /* most that may live on a chip; 0: as many as there are descriptors and memory for */
  uint64_t domain_bytes;
  sim_driver driver;
  sim_timing_mode timing;
  const sim_products *products; /* the inner loops that a run uses */
  sim_timing constants;         /* of timing, instead of the chip's; 0: the chip's own */
} sim_settings;

/* With the chip that the calling thread selected, if any. */
sim_settings sim_current_settings(void);

const sim_runtime *sim_current_runtime(void);

/* False, with a log line, while the value of a setting is malformed. */
bool sim_settings_usable(void);

#endif
