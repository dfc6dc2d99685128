/*
 * What libnpumm_sim.so exports beside the vendor's functions of rknn_abi.h. A program that finds the symbol
 * npumm_sim_describe knows that it runs on a simulated NPU.
 */
#ifndef NPUMATMUL_SIM_H
#define NPUMATMUL_SIM_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Counts since the library was loaded or npumm_sim_reset_counters was called; *_now are current values. */
typedef struct {
  uint64_t run_calls;
  uint64_t set_io_mem_calls;
  uint64_t mem_sync_calls;
  uint64_t macs;          /* multiply-accumulates of all runs, padding included */
  uint64_t contexts_now;  /* living matmul contexts */
  uint64_t memories_now;  /* living rknn_tensor_mem structs */
  uint64_t descriptors_now; /* file descriptors held by allocations */
  uint64_t bytes_now;     /* bytes of NPU memory allocated (wrapped memory is not counted twice) */
} npumm_sim_counters;

/* The simulated chip: soc such as "rk3588" and its number of NPU cores. Both pointers stay valid for ever. */
const char *npumm_sim_describe(int *cores);
void npumm_sim_read_counters(npumm_sim_counters *counters);
void npumm_sim_reset_counters(void);

#ifdef __cplusplus
}
#endif
#endif
