/*
 * Where the elements of A, B and C lie (facts 4.3), plainly written and used by the simulator only: it shares no
 * packing code with native/kernels, so that a layout mistake made there cannot cancel itself here.
 */
#ifndef SIM_LAYOUT_H
#define SIM_LAYOUT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/*
 * Shape of a native B: [N / tile_n, K / tile_k, tile_n, tile_k], k the fastest. With K above segment, every slice of
 * segment k's is such a block of its own, in rising k without gaps (facts 4.4; the order is Q4). K and N must be
 * multiples of the tile, segment a multiple of tile_k, or 0 for no segments.
 */
typedef struct {
  size_t K, N;
  size_t tile_n, tile_k;
  size_t segment;
} sim_b_shape;

/* One slice of B along K. */
typedef struct {
  size_t k_start;
  size_t k_depth;
  size_t first_element; /* of the slice in native B */
} sim_b_segment;

size_t sim_b_segment_count(const sim_b_shape *shape);
sim_b_segment sim_b_segment_at(const sim_b_shape *shape, size_t index);

/* int4 pairs: in which nibble of a byte the element with the even index is. */
typedef struct {
  uint32_t bits; /* 4, 8 or 16 */
  bool int4_low_first;
} sim_element;

/* Rearranges a B given row-major as [K, N], or as [N, K] when transposed, into native tiles. */
void sim_pack_b(const sim_b_shape *shape, sim_element element, bool transposed, const uint8_t *in, uint8_t *out);

/* Copies rows m to m + rows of A, K elements of bits each, out of [M, K] (group 0) or native [K / group, M, group];
 * out_step bytes from one to the next. */
void sim_gather_a_rows(const uint8_t *a, size_t M, size_t K, uint32_t bits, size_t group, size_t m, size_t rows,
                       uint8_t *out, size_t out_step);

/* Writes width columns from n on of rows m to m + rows, one row after another, into C as [M, N] (group 0) or native
 * [N / group, M, group]. */
void sim_scatter_c_rows(uint8_t *c, size_t M, size_t N, size_t element_bytes, size_t group, size_t m, size_t rows,
                        size_t n, size_t width, const uint8_t *in);

#endif
