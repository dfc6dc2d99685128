/*
 * What libnpumm_sim.so exports beside the vendor's functions of rknn_abi.h. A program that finds the symbol
 * npumm_sim_describe knows that it runs on a simulated NPU.
 */
#ifndef NPUMATMUL_SIM_H
#define NPUMATMUL_SIM_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Counts since the library was loaded or npumm_sim_reset_counters was called; *_now are current values. */
typedef struct {
  uint64_t run_calls;
  uint64_t set_io_mem_calls;
  uint64_t mem_sync_calls;
  uint64_t macs;               /* multiply-accumulates of all runs, padding included */
  uint64_t contexts_now;       /* living matmul contexts */
  uint64_t memories_now;       /* living rknn_tensor_mem structs */
  uint64_t descriptors_now;    /* file descriptors held by allocations and contexts */
  uint64_t bytes_now;          /* bytes of NPU memory allocated (wrapped memory is not counted twice) */
  uint64_t device_nanoseconds; /* modelled time of all chips, a sum too; 0 with NPUMATMUL_SIM_TIMING=off */
} npumm_sim_counters;

/*
 * The simulated chip of the calling thread: soc such as "rk3588" and its number of NPU cores. The pointer stays valid
 * for ever.
 */
const char *npumm_sim_describe(int *cores);

/*
 * Chooses the chip on which the calling thread creates contexts, and memory without a context, from now on, such as
 * "rk3576" (docs/simulator.md lists them), or NULL for the chip of NPUMATMUL_SIM_SOC. Contexts and memories stay on the
 * chip on which they were made, and any thread may use them. Each chip has context counts and memory budgets of its
 * own. Returns 0, or -5 for a name that is none.
 */
int npumm_sim_select(const char *soc);

/*
 * Changes a setting as if the environment had had it at load: name is the variable's name, value its value, NULL or ""
 * the default. It counts for contexts and memories created afterwards, NPUMATMUL_SIM_FAULTS and NPUMATMUL_SIM_TRACE at
 * once. Returns 0; -1 with a line on standard error for a value that is malformed, which changes nothing; -5 for a name
 * that is none. docs/simulator.md lists the settings.
 */
int npumm_sim_configure(const char *name, const char *value);

/*
 * The value of a setting that is in force, cut off to size with a final NUL like snprintf. Returns the length of the
 * whole text without the NUL; call it with NULL and 0 for that. (size_t)-1 for a name that is none.
 */
size_t npumm_sim_setting(const char *name, char *buffer, size_t size);

void npumm_sim_read_counters(npumm_sim_counters *counters);
void npumm_sim_reset_counters(void);

/*
 * All counters as JSON text, cut off to size with a final NUL like snprintf. Returns the length of the whole text
 * without the NUL; call it with NULL and 0 for that.
 */
size_t npumm_sim_counters_json(char *buffer, size_t size);

/*
 * Modelled seconds of a run of that matmul type on a chip, while runs are on so many of its cores, with A and C in native
 * layout or not, by the constants that are in force (NPUMATMUL_SIM_TIMING_CONSTANTS). -1 for what cannot be.
 */
double npumm_sim_run_seconds(const char *soc, int type, int M, int K, int N, int cores, int native);

/*
 * Writes a trace of all calls to a file, in the JSON format of chrome://tracing and Perfetto. Starting ends a trace
 * that is going on. Returns 0; -1 when the file cannot be written; -5 for no path.
 */
int npumm_sim_trace_start(const char *path);
void npumm_sim_trace_stop(void);

#ifdef __cplusplus
}
#endif
#endif
