/*
 * What is simulated, as data: the chips with their matmul types, and the runtime version. No tile size, limit or
 * alignment stands anywhere else in the simulator; another chip, type or version is another row.
 */
#ifndef SIM_CHIPS_H
#define SIM_CHIPS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "rknn_abi.h"

/* How the numbers of a type are multiplied and added up; one inner loop each in products.h. */
typedef enum {
  PRODUCT_F16, /* halves, exact products, float32 sums */
  PRODUCT_I8,  /* int8, int32 sums modulo 2^32 */
  PRODUCT_I4   /* int4, exact sums, saturated to int16 at the end */
} sim_product;

/* One matmul type of one chip. All counts are elements (facts 3.5: the header's "byte" can only mean elements). */
typedef struct {
  rknn_matmul_type type;
  sim_product product;
  rknn_tensor_type a, b, c;
  uint32_t k_align, n_align;
  uint32_t a_group;              /* native A is [K / a_group, M, a_group] */
  uint32_t b_tile_n, b_tile_k;   /* native B is [N / b_tile_n, K / b_tile_k, b_tile_n, b_tile_k] */
  uint32_t c_group;              /* native C is [N / c_group, M, c_group] */
  uint64_t native_ac_max_mk;     /* largest M * K that create survives with native A and C; 0: no such limit */
} sim_type;

typedef struct {
  const char *soc;
  int cores;
  uint32_t k_max;          /* largest K that create accepts */
  uint32_t k_segment;      /* native B with a larger K is stored in slices of this depth (facts 4.4); 0: never */
  uint64_t domain_bytes;   /* NPU memory that one IOMMU domain gives */
  int domains;             /* valid iommu_domain_id are 0 .. domains - 1 */
  uint32_t contexts_max;   /* living contexts, as met in the field */
  uint32_t not_yet;        /* bit t: the chip does matmul type t, the simulator does not */
  size_t type_count;
  const sim_type *types;
} sim_chip;

typedef struct {
  const char *api_version;
  const char *driver_version;
  bool int4_low_first;  /* the even element of an int4 pair is the low nibble (facts 4.6, D28) */
} sim_runtime;

const sim_chip *sim_current_chip(void);
const sim_runtime *sim_current_runtime(void);

/* NULL when the chip has no such type or the simulator does not do it. */
const sim_type *sim_find_type(const sim_chip *chip, rknn_matmul_type type);

/* "RKNN_INT8_MM_INT8_TO_INT32", or the vendor's "UNKNOW". */
const char *sim_type_name(rknn_matmul_type type);

/* Bits per element; 0 for a type that no matmul uses. */
uint32_t sim_dtype_bits(rknn_tensor_type dtype);

#endif
