/*
 * The virtual clock of each chip: how long a board is modelled to have been at work (NPUMATMUL_SIM_TIMING).
 *
 * Time has to come out the same however fast this machine's threads are, so it does not matter when a run was called.
 * What a program hands to several cores it is taken to hand to them at once:
 *
 *   - Runs come in batches. rknn_mem_sync to the device ends a batch if the core of its context has run in it, and if that
 *     context leaves the core to the runtime, or there is none, if any core has: new operands are made of old results.
 *     In a version that has no such call, set_io_mem of A is what ends it.
 *   - In a batch, runs on one core follow one another, and those on different cores overlap: as many cores as have runs
 *     in the batch share the memory during all of it.
 *   - set_io_mem takes the time of whoever serves the core, between its runs.
 *   - A batch lasts as long as its busiest core, and where several have runs, one joining longer. Batches follow one
 *     another.
 *
 * That is how the planner adds up what it models. A program that runs contexts of different cores one after the other,
 * in one thread and without new operands, is taken to have done it at once. Runs of contexts that leave their core to the
 * runtime count where cores.h puts them; from several threads at once, that depends on the threads.
 *
 * Times are whole picoseconds: their sums do not depend on an order either.
 */
#ifndef SIM_CLOCK_H
#define SIM_CLOCK_H

#include <stdbool.h>
#include <stdint.h>

#include "context.h"

/* A run of the context's present shape has ended. */
void sim_clock_run(const sim_context *context, int core);

/* A tensor was bound, and so many bytes of it packed. */
void sim_clock_bind(const sim_context *context, size_t packed_bytes);

/* New operands through a context with that core mask, or RKNN_NPU_CORE_AUTO. */
void sim_clock_sync(int chip, int core_mask);

/* Whether no run of the core has ended in the present batch. */
bool sim_clock_is_first(int chip, int core);

/* Nanoseconds: of the chip, and of one core's runs. */
uint64_t sim_clock_all(int chip);
uint64_t sim_clock_core(int chip, int core);

void sim_clock_reset(void);

/* What a context's last run takes with the memory to itself. */
int64_t sim_modelled_microseconds(const sim_context *context);

#endif
