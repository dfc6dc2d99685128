#include "layout.h"

#include <string.h>

size_t sim_b_segment_count(const sim_b_shape *shape) {
  if (shape->segment == 0 || shape->K <= shape->segment) return 1;
  return (shape->K + shape->segment - 1) / shape->segment; /* a rounded-up division, see facts 4.4 */
}

sim_b_segment sim_b_segment_at(const sim_b_shape *shape, size_t index) {
  if (sim_b_segment_count(shape) == 1) return (sim_b_segment){.k_start = 0, .k_depth = shape->K, .first_element = 0};
  size_t start = index * shape->segment;
  size_t left = shape->K - start;
  return (sim_b_segment){
      .k_start = start,
      .k_depth = left < shape->segment ? left : shape->segment,
      .first_element = start * shape->N,
  };
}

static inline void copy_element(sim_element element, const uint8_t *in, size_t from, uint8_t *out, size_t to) {
  switch (element.bits) {
    case 16:
      memcpy(out + 2 * to, in + 2 * from, 2);
      return;
    case 8:
      out[to] = in[from];
      return;
    default: { /* 4 */
      bool from_low = (from % 2 == 0) == element.int4_low_first;
      bool to_low = (to % 2 == 0) == element.int4_low_first;
      unsigned value = from_low ? in[from / 2] & 15u : (unsigned)in[from / 2] >> 4;
      unsigned other = out[to / 2] & (to_low ? 0xf0u : 0x0fu);
      out[to / 2] = (uint8_t)(other | (to_low ? value : value << 4));
    }
  }
}

/* always_inline: each call below has a constant width, which takes the switch out of the loop. */
__attribute__((always_inline)) static inline void pack_elements(const sim_b_shape *shape, sim_element element,
                                                                bool transposed, const uint8_t *in, uint8_t *out) {
  size_t to = 0;
  for (size_t s = 0; s < sim_b_segment_count(shape); s++) {
    sim_b_segment segment = sim_b_segment_at(shape, s);
    size_t k_end = segment.k_start + segment.k_depth;
    for (size_t n_tile = 0; n_tile < shape->N; n_tile += shape->tile_n) {
      for (size_t k_tile = segment.k_start; k_tile < k_end; k_tile += shape->tile_k) {
        for (size_t n = n_tile; n < n_tile + shape->tile_n; n++) {
          for (size_t k = k_tile; k < k_tile + shape->tile_k; k++) {
            copy_element(element, in, transposed ? n * shape->K + k : k * shape->N + n, out, to++);
          }
        }
      }
    }
  }
}

void sim_pack_b(const sim_b_shape *shape, sim_element element, bool transposed, const uint8_t *in, uint8_t *out) {
  switch (element.bits) {
    case 16:
      pack_elements(shape, (sim_element){.bits = 16}, transposed, in, out);
      return;
    case 8:
      pack_elements(shape, (sim_element){.bits = 8}, transposed, in, out);
      return;
    default:
      pack_elements(shape, (sim_element){.bits = 4, .int4_low_first = element.int4_low_first}, transposed, in, out);
  }
}

/* count times `bytes`, a constant to the compiler in the cases that chips have. */
static void copy_strided(uint8_t *out, size_t out_step, const uint8_t *in, size_t in_step, size_t bytes, size_t count) {
  if (bytes == 16) {
    for (size_t i = 0; i < count; i++) memcpy(out + i * out_step, in + i * in_step, 16);
  } else if (bytes == 8) {
    for (size_t i = 0; i < count; i++) memcpy(out + i * out_step, in + i * in_step, 8);
  } else {
    for (size_t i = 0; i < count; i++) memcpy(out + i * out_step, in + i * in_step, bytes);
  }
}

void sim_gather_a_rows(const uint8_t *a, size_t M, size_t K, uint32_t bits, size_t group, size_t m, size_t rows,
                       uint8_t *out, size_t out_step) {
  size_t row_bytes = K * bits / 8, group_bytes = group * bits / 8;
  if (group == 0) {
    copy_strided(out, out_step, a + m * row_bytes, row_bytes, row_bytes, rows);
    return;
  }
  for (size_t g = 0; g < K / group; g++) {
    copy_strided(out + g * group_bytes, out_step, a + (g * M + m) * group_bytes, group_bytes, group_bytes, rows);
  }
}

void sim_scatter_c_rows(uint8_t *c, size_t M, size_t N, size_t element_bytes, size_t group, size_t m, size_t rows,
                        size_t n, size_t width, const uint8_t *in) {
  size_t row_bytes = width * element_bytes, group_bytes = group * element_bytes;
  if (group == 0) {
    copy_strided(c + (m * N + n) * element_bytes, N * element_bytes, in, row_bytes, row_bytes, rows);
    return;
  }
  for (size_t g = 0; g < width / group; g++) {
    uint8_t *out = c + ((n / group + g) * M + m) * group_bytes;
    copy_strided(out, group_bytes, in + g * group_bytes, row_bytes, group_bytes, rows);
  }
}
