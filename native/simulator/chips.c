#include "chips.h"

#include "export.h"
#include "npumatmul_sim.h"

/* Tiles and groups: facts 4.2. Alignments: the header's, which recordings confirm (facts 14, D5, D6). */
static const sim_type rk3588_types[] = {
    {
        .type = RKNN_FLOAT16_MM_FLOAT16_TO_FLOAT32,
        .product = PRODUCT_F16,
        .a = RKNN_TENSOR_FLOAT16,
        .b = RKNN_TENSOR_FLOAT16,
        .c = RKNN_TENSOR_FLOAT32,
        .k_align = 32,
        .n_align = 16,
        .a_group = 8,
        .b_tile_n = 16,
        .b_tile_k = 32,
        .c_group = 4,
    },
    {
        .type = RKNN_INT8_MM_INT8_TO_INT32,
        .product = PRODUCT_I8,
        .a = RKNN_TENSOR_INT8,
        .b = RKNN_TENSOR_INT8,
        .c = RKNN_TENSOR_INT32,
        .k_align = 32,
        .n_align = 32,
        .a_group = 16,
        .b_tile_n = 32,
        .b_tile_k = 32,
        .c_group = 4,
    },
    {
        .type = RKNN_INT4_MM_INT4_TO_INT16,
        .product = PRODUCT_I4,
        .a = RKNN_TENSOR_INT4,
        .b = RKNN_TENSOR_INT4,
        .c = RKNN_TENSOR_INT16,
        .k_align = 32,
        .n_align = 64,
        .a_group = 32,
        .b_tile_n = 64,
        .b_tile_k = 32,
        .c_group = 8,
        .native_ac_max_mk = 262144, /* above it runtime 1.6.0 died inside create for many shapes */
    },
};

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))
#define BIT(type) (1u << (type))

static const sim_chip chips[] = {
    {
        .soc = "rk3588",
        .cores = 3,
        /* No document states a maximum above 8192, where segments begin (D4, Q9); this one bounds the arithmetic. */
        .k_max = 1u << 20,
        .k_segment = 8192,
        /* A process runs out of NPU memory at about 2 GiB per domain (facts 7.4, 11.4). */
        .domain_bytes = (2ull << 30) - (64u << 10),
        .domains = 16,
        .contexts_max = 150,
        .not_yet = BIT(RKNN_INT8_MM_INT8_TO_INT8) | BIT(RKNN_FLOAT16_MM_FLOAT16_TO_FLOAT16) |
                   BIT(RKNN_INT8_MM_INT8_TO_FLOAT32),
        .type_count = COUNT(rk3588_types),
        .types = rk3588_types,
    },
};

static const sim_runtime runtimes[] = {
    {
        .api_version = "2.3.2 (npumatmul-simulator@2025-04-09T09:09:27)",
        .driver_version = "0.9.8",
        .int4_low_first = true,
    },
};

static const struct {
  rknn_matmul_type type;
  const char *name;
} type_names[] = {
    {RKNN_FLOAT16_MM_FLOAT16_TO_FLOAT32, "RKNN_FLOAT16_MM_FLOAT16_TO_FLOAT32"},
    {RKNN_INT8_MM_INT8_TO_INT32, "RKNN_INT8_MM_INT8_TO_INT32"},
    {RKNN_INT8_MM_INT8_TO_INT8, "RKNN_INT8_MM_INT8_TO_INT8"},
    {RKNN_FLOAT16_MM_FLOAT16_TO_FLOAT16, "RKNN_FLOAT16_MM_FLOAT16_TO_FLOAT16"},
    {RKNN_FLOAT16_MM_INT8_TO_FLOAT32, "RKNN_FLOAT16_MM_INT8_TO_FLOAT32"},
    {RKNN_FLOAT16_MM_INT8_TO_FLOAT16, "RKNN_FLOAT16_MM_INT8_TO_FLOAT16"},
    {RKNN_FLOAT16_MM_INT4_TO_FLOAT32, "RKNN_FLOAT16_MM_INT4_TO_FLOAT32"},
    {RKNN_FLOAT16_MM_INT4_TO_FLOAT16, "RKNN_FLOAT16_MM_INT4_TO_FLOAT16"},
    {RKNN_INT8_MM_INT8_TO_FLOAT32, "RKNN_INT8_MM_INT8_TO_FLOAT32"},
    {RKNN_INT4_MM_INT4_TO_INT16, "RKNN_INT4_MM_INT4_TO_INT16"},
    {RKNN_INT8_MM_INT4_TO_INT32, "RKNN_INT8_MM_INT4_TO_INT32"},
    {RKNN_FLOAT16_MM_INT4_TO_BFLOAT16, "RKNN_FLOAT16_MM_INT4_TO_BFLOAT16"},
    /* 15 has no name in the vendor's table either (facts 1.4). */
};

const sim_chip *sim_current_chip(void) { return &chips[0]; }

const sim_runtime *sim_current_runtime(void) { return &runtimes[0]; }

const sim_type *sim_find_type(const sim_chip *chip, rknn_matmul_type type) {
  for (size_t i = 0; i < chip->type_count; i++) {
    if (chip->types[i].type == type) return &chip->types[i];
  }
  return NULL;
}

const char *sim_type_name(rknn_matmul_type type) {
  for (size_t i = 0; i < COUNT(type_names); i++) {
    if (type_names[i].type == type) return type_names[i].name;
  }
  return "UNKNOW";
}

uint32_t sim_dtype_bits(rknn_tensor_type dtype) {
  switch (dtype) {
    case RKNN_TENSOR_INT4:
      return 4;
    case RKNN_TENSOR_INT8:
      return 8;
    case RKNN_TENSOR_FLOAT16:
    case RKNN_TENSOR_INT16:
      return 16;
    case RKNN_TENSOR_FLOAT32:
    case RKNN_TENSOR_INT32:
      return 32;
    default:
      return 0;
  }
}

SIM_EXPORT const char *npumm_sim_describe(int *cores) {
  const sim_chip *chip = sim_current_chip();
  if (cores) *cores = chip->cores;
  return chip->soc;
}
