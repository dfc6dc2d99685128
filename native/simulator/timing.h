/*
 * How long a chip is modelled to take, written down again from the description of the model and not from the planner's
 * code (npumatmul/chips/timing/model.py), which the tests compare it with:
 *
 *   row       bytes of a row of A of depth K
 *   group     columns of a native tile of B, each as deep as K, as elements of A: columns * row
 *   resident  rows of A that stand in the buffer beside two such groups: (buffer - 2 group) / row. Where that is fewer
 *             than 4, one group has to do: (buffer - group) / row, at least 1, and nothing is read while it is multiplied
 *   traffic   bytes of B once for each `resident` rows, of A and of C once, at this core's share of the bandwidth:
 *             min(cores * bandwidth_one_core, bandwidth_all_cores) / cores
 *   products  2 M K N / peak
 *   run       start + max(traffic, products), or their sum where there is one group; and with C in normal layout
 *             M N normal_c_seconds, unless there is a peak for normal layout, which stands for all of it
 *   bind      a constant per set_io_mem; a B that the runtime packs is copied at the host's bandwidth besides
 */
#ifndef SIM_TIMING_H
#define SIM_TIMING_H

#include <stdbool.h>
#include <stddef.h>

#include "chips.h"

/*
 * Reads "start_seconds=3e-5,peak_int8=1e12": names as in sim_constant, in small letters. What is not named becomes 0.
 * False, with nothing changed, when the text is not so, a name is there twice, or a value is not above 0.
 */
bool sim_timing_read(const char *text, sim_timing *constants);

/* The constants of a chip, where `instead` has 0, and those of `instead`. */
sim_timing sim_timing_of(const sim_chip *chip, const sim_timing *instead);

/* A run of a type of the chip, while runs are on so many cores, its own included. */
double sim_run_seconds(const sim_timing *timing, const sim_type *type, size_t M, size_t K, size_t N, int cores,
                       bool native_ac);

/* A set_io_mem that packs so many bytes. */
double sim_bind_seconds(const sim_timing *timing, size_t packed_bytes);

#endif
