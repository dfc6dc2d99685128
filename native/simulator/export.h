/*
 * Which functions leave the shared library. It is compiled with -fvisibility=hidden, so that only what carries
 * SIM_EXPORT can be found by a caller: the vendor's names and npumm_sim_*.
 */
#ifndef SIM_EXPORT_H
#define SIM_EXPORT_H

#define SIM_EXPORT __attribute__((visibility("default")))

#endif
