/*
 * Working memory of runs, kept from run to run. There are as many blocks as were in use at once.
 */
#ifndef SIM_SCRATCH_H
#define SIM_SCRATCH_H

#include <stddef.h>

/* A block of at least bytes, aligned to 64; NULL when there is no memory. Contents are undefined. */
void *sim_scratch_take(size_t bytes);
void sim_scratch_give(void *block);

/* Frees the blocks that no run is using. */
void sim_scratch_trim(void);

#endif
