/*
 * Faults on request: NPUMATMUL_SIM_FAULTS.
 *
 *     rules   = rule { ";" rule }
 *     rule    = call { ":" option }
 *     call    = create, create_dynamic_shape, set_dynamic_shape, set_io_mem, set_core_mask, set_quant_params,
 *               get_quant_params, run, destroy, pack_b, create_mem (and create_mem2), create_mem_from_fd,
 *               create_mem_from_phys, destroy_mem, mem_sync, query
 *     option  = "code=" number     return it instead of doing anything (NULL where a pointer is returned); -13 .. -1
 *             | "delay_ms=" number wait before going on; up to 3600000
 *             | "hang"             do not return until the faults are set anew; then return code, or -2 without one
 *             | "lost"             the device is gone from this call on: it and every later one, of any kind, returns code,
 *                                  or -3 without one (NULL where a pointer is returned), until the faults are set anew
 *             | "after=" number    let that many calls pass first
 *             | "times=" number    do it that many times only
 *             | "prob=" fraction   do it with this probability; 0 .. 1
 *             | "seed=" number     of the pseudo-random numbers for prob; 1 without it
 *
 * A rule needs code, delay_ms, hang or lost. The calls of a rule are counted from the moment it is set, over all threads and
 * chips. With several rules for a call, delays add up and the first code counts. Example:
 *
 *     create_mem:after=10:code=-4;run:prob=0.01:seed=7:code=-2;run:delay_ms=50
 */
#ifndef SIM_FAULTS_H
#define SIM_FAULTS_H

#include <stdbool.h>

#include "functions.h"

/* Replaces all rules; "" for none. False, with nothing changed, when the text is not as above. */
bool sim_faults_set(const char *text);

/* Waits and hangs as the rules say. The code to return instead of carrying out the call, or 0. */
int sim_faults_inject(sim_call call);

#endif
