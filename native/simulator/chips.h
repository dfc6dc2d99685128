/*
 * The simulated chips with their matmul types, as data. No tile size or alignment stands anywhere else in the
 * simulator; another chip or type is another row. What differs by runtime version is in runtimes.h.
 */
#ifndef SIM_CHIPS_H
#define SIM_CHIPS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "rknn_abi.h"

/* How the numbers of a type are multiplied and added up; one inner loop each in products.h. */
typedef enum {
  PRODUCT_F16, /* A of halves: exact products, float32 sums; an integer B becomes halves first, which is exact */
  PRODUCT_I8,  /* A of int8, int32 sums modulo 2^32; an int4 B becomes int8 first */
  PRODUCT_I4   /* int4, exact sums, narrowed to int16 at the end */
} sim_product;

/* For which part of B one scale and zero point stand; bits, because a type may allow several. */
typedef enum { PER_LAYER = 1, PER_CHANNEL = 2, PER_GROUP = 4 } sim_granularity;

/* One matmul type of one chip. All counts are elements (facts 3.5: the header's "byte" can only mean elements). */
typedef struct {
  rknn_matmul_type type;
  sim_product product;
  rknn_tensor_type a, b, c;
  uint32_t k_align, n_align;                     /* the header's, which recordings confirm (facts 14, D5, D6) */
  uint32_t documented_n_align, documented_n_max; /* the guide's, stricter (facts 3.4, D6, D7) */
  uint32_t a_group;                              /* native A is [K / a_group, M, a_group] */
  uint32_t b_tile_n, b_tile_k;                   /* native B is [N / b_tile_n, K / b_tile_k, b_tile_n, b_tile_k] */
  uint32_t c_group;                              /* native C is [N / c_group, M, c_group] */
  uint32_t k_max_1_5_2;                          /* recorded; 0 where that version does not have the type */
  unsigned observed_granularity, documented_granularity; /* sim_granularity bits for B (facts 5.3, D13) */
  uint32_t (*native_rows)(uint32_t k, uint32_t n);       /* largest M with native A and C; NULL: no such limit */
} sim_type;

/* The constants of the model of time, timing.h. */
typedef enum {
  START_SECONDS,      /* of a run */
  JOIN_SECONDS,       /* of runs on several cores at once, together */
  BUFFER_BYTES,       /* of a core */
  BANDWIDTH_ONE_CORE, /* bytes per second */
  BANDWIDTH_ALL_CORES,
  BIND_SECONDS,     /* of a rknn_matmul_set_io_mem */
  HOST_BANDWIDTH,   /* of a thread that copies, bytes per second */
  NORMAL_C_SECONDS, /* of converting an element of C in normal layout */
  PEAK_FLOAT16,     /* operations per second and core, by the type of A and in the order of sim_product */
  PEAK_INT8,
  PEAK_INT4,
  NORMAL_PEAK_FLOAT16, /* the same with A and C in normal layout; 0: as above */
  NORMAL_PEAK_INT8,
  NORMAL_PEAK_INT4,
  SIM_CONSTANTS
} sim_constant;

typedef struct {
  double of[SIM_CONSTANTS];
} sim_timing;

typedef struct {
  const char *soc;
  int index; /* of the table */
  int cores;
  int since;            /* number of the first runtime that knows it */
  uint32_t k_max_1_6_0; /* recorded: the largest K that create accepts (facts 14) */
  uint32_t k_max;       /* of later runtimes */
  uint32_t documented_k_max;
  uint32_t k_segment; /* native B with a larger K is stored in slices of this depth (facts 4.4); 0: never */
  bool transposed_b;  /* takes B as [N, K] (D19) */
  int domains;        /* valid iommu_domain_id are 0 .. domains - 1 (Q23) */
  sim_timing timing;
  size_t type_count;
  const sim_type *types;
} sim_chip;

enum { SIM_CHIPS = 5, SIM_DOMAINS_MAX = 16, SIM_CORES_MAX = 3, SIM_TYPES_MAX = 16 };

/* NULL beyond the last one. */
const sim_chip *sim_chip_at(int index);

/* NULL for a name that is none. */
const sim_chip *sim_find_chip(const char *soc);

/* NULL when the chip has no such type. */
const sim_type *sim_find_type(const sim_chip *chip, rknn_matmul_type type);

/* "RKNN_INT8_MM_INT8_TO_INT32"; NULL for a number that no version names. */
const char *sim_type_name(rknn_matmul_type type);

/* Bits per element; 0 for a type that no matmul uses. */
uint32_t sim_dtype_bits(rknn_tensor_type dtype);

#endif
