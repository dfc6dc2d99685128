/*
 * The NPU cores of each chip: which runs are on which core. All simulated cores are alike and none is ever full; this
 * only decides what statistics call the core of a run.
 */
#ifndef SIM_CORES_H
#define SIM_CORES_H

#include "chips.h"

/* The core of a run: the mask's own, or with RKNN_NPU_CORE_AUTO the first with the fewest runs on it (D34). */
int sim_core_take(const sim_chip *chip, int core_mask);
void sim_core_give(const sim_chip *chip, int core);

#endif
