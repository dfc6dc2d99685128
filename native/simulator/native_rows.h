/*
 * How many rows rknn_matmul_create of a vendor runtime survives for int4 with native A and C (facts 14, 15). Above
 * that the process dies of SIGFPE.
 */
#ifndef SIM_NATIVE_ROWS_H
#define SIM_NATIVE_ROWS_H

#include <stdint.h>

/*
 * Recorded on rk3588 under runtime 1.6.0. A K or N between two recorded ones has the least of its neighbours, a K that
 * is larger than all of them no row, an N outside of them a single one.
 */
uint32_t sim_int4_native_rows(uint32_t k, uint32_t n);

#endif
