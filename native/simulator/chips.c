#include "chips.h"

#include <string.h>

#include "native_rows.h"

#define F16 RKNN_TENSOR_FLOAT16
#define F32 RKNN_TENSOR_FLOAT32
#define I4 RKNN_TENSOR_INT4
#define I8 RKNN_TENSOR_INT8
#define I16 RKNN_TENSOR_INT16
#define I32 RKNN_TENSOR_INT32

/* Columns that are the same in every row of a type. */
#define TYPE_1 .type = RKNN_FLOAT16_MM_FLOAT16_TO_FLOAT32, .product = PRODUCT_F16, .a = F16, .b = F16, .c = F32
#define TYPE_2 .type = RKNN_INT8_MM_INT8_TO_INT32, .product = PRODUCT_I8, .a = I8, .b = I8, .c = I32
#define TYPE_3 .type = RKNN_INT8_MM_INT8_TO_INT8, .product = PRODUCT_I8, .a = I8, .b = I8, .c = I8
#define TYPE_4 .type = RKNN_FLOAT16_MM_FLOAT16_TO_FLOAT16, .product = PRODUCT_F16, .a = F16, .b = F16, .c = F16
#define TYPE_5 .type = RKNN_FLOAT16_MM_INT8_TO_FLOAT32, .product = PRODUCT_F16, .a = F16, .b = I8, .c = F32
#define TYPE_7 .type = RKNN_FLOAT16_MM_INT4_TO_FLOAT32, .product = PRODUCT_F16, .a = F16, .b = I4, .c = F32
#define TYPE_8 .type = RKNN_FLOAT16_MM_INT4_TO_FLOAT16, .product = PRODUCT_F16, .a = F16, .b = I4, .c = F16
#define TYPE_9 .type = RKNN_INT8_MM_INT8_TO_FLOAT32, .product = PRODUCT_I8, .a = I8, .b = I8, .c = F32
#define TYPE_10 .type = RKNN_INT4_MM_INT4_TO_INT16, .product = PRODUCT_I4, .a = I4, .b = I4, .c = I16
#define TYPE_11 .type = RKNN_INT8_MM_INT4_TO_INT32, .product = PRODUCT_I8, .a = I8, .b = I4, .c = I32

/* K multiple; N multiple; the guide's N multiple and maximum. */
#define ALIGN(k, n, guide_n, guide_n_max) \
  .k_align = (k), .n_align = (n), .documented_n_align = (guide_n), .documented_n_max = (guide_n_max)
/* Native layouts: group of A; tile of B; group of C (facts 4.2; mixed types 4.5). */
#define TILES(a, n, k, c) .a_group = (a), .b_tile_n = (n), .b_tile_k = (k), .c_group = (c)
/* Granularities of B's scales: as a runtime reports them; as the documents say. */
#define SCALES(observed, documented) .observed_granularity = (observed), .documented_granularity = (documented)

/*
 * The group of a native C of halves or int8 (types 4, 8 and 3) is documented for no chip: 8 and 16 are a guess from the
 * 16 bytes that every documented group of C has (Q6).
 */
/* clang-format off */
static const sim_type rk3588_types[] = {
    {TYPE_1, ALIGN(32, 16, 32, 4096), TILES(8, 16, 32, 4), SCALES(PER_LAYER, PER_LAYER), .k_max_1_5_2 = 2048},
    {TYPE_2, ALIGN(32, 32, 32, 4096), TILES(16, 32, 32, 4), SCALES(PER_LAYER | PER_CHANNEL, PER_LAYER | PER_CHANNEL),
     .k_max_1_5_2 = 4096},
    {TYPE_3, ALIGN(32, 32, 32, 4096), TILES(16, 32, 32, 16), SCALES(PER_LAYER | PER_CHANNEL, PER_LAYER | PER_CHANNEL)},
    {TYPE_4, ALIGN(32, 16, 32, 4096), TILES(8, 16, 32, 8), SCALES(PER_LAYER, PER_LAYER)},
    {TYPE_9, ALIGN(32, 32, 32, 4096), TILES(16, 32, 32, 4),
     SCALES(PER_LAYER | PER_GROUP, PER_LAYER | PER_CHANNEL | PER_GROUP)},
    {TYPE_10, ALIGN(32, 64, 64, 8192), TILES(32, 64, 32, 8), SCALES(PER_LAYER, PER_LAYER),
     .native_rows = sim_int4_native_rows},
};
/* clang-format on */

/* Type 10 is left out: the guide's table does not give it to this chip (D18, Q12). */
/* clang-format off */
static const sim_type rk3576_types[] = {
    {TYPE_1, ALIGN(32, 16, 32, 4096), TILES(8, 16, 32, 4), SCALES(PER_LAYER, PER_LAYER)},
    {TYPE_2, ALIGN(32, 32, 32, 4096), TILES(16, 32, 32, 4), SCALES(PER_LAYER | PER_CHANNEL, PER_LAYER | PER_CHANNEL)},
    {TYPE_4, ALIGN(32, 16, 32, 4096), TILES(8, 16, 32, 8), SCALES(PER_LAYER, PER_LAYER)},
    {TYPE_5, ALIGN(32, 16, 32, 4096), TILES(8, 16, 32, 4),
     SCALES(PER_LAYER | PER_CHANNEL, PER_LAYER | PER_CHANNEL | PER_GROUP)},
    {TYPE_7, ALIGN(32, 16, 32, 4096), TILES(8, 16, 32, 4),
     SCALES(PER_LAYER | PER_CHANNEL | PER_GROUP, PER_LAYER | PER_CHANNEL | PER_GROUP)},
    {TYPE_8, ALIGN(32, 16, 32, 4096), TILES(8, 16, 32, 8),
     SCALES(PER_LAYER | PER_CHANNEL | PER_GROUP, PER_LAYER | PER_CHANNEL | PER_GROUP)},
    {TYPE_11, ALIGN(32, 32, 32, 4096), TILES(16, 32, 32, 4), SCALES(PER_LAYER | PER_CHANNEL, PER_LAYER | PER_CHANNEL)},
};
/* clang-format on */

/* clang-format off */
static const sim_type rk3566_types[] = {
    {TYPE_1, ALIGN(16, 8, 16, 4096), TILES(4, 8, 16, 4), SCALES(PER_LAYER, PER_LAYER), .k_max_1_5_2 = 2048},
    {TYPE_2, ALIGN(32, 16, 16, 4096), TILES(8, 16, 32, 4), SCALES(PER_LAYER | PER_CHANNEL, PER_LAYER | PER_CHANNEL),
     .k_max_1_5_2 = 4096},
};
/* clang-format on */

/* clang-format off */
static const sim_type rk3562_types[] = {
    {TYPE_1, ALIGN(32, 8, 16, 4096), TILES(8, 8, 32, 4), SCALES(PER_LAYER, PER_LAYER), .k_max_1_5_2 = 2048},
    {TYPE_2, ALIGN(32, 16, 16, 4096), TILES(16, 16, 32, 4), SCALES(PER_LAYER | PER_CHANNEL, PER_LAYER | PER_CHANNEL),
     .k_max_1_5_2 = 4096},
};
/* clang-format on */

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))
#define TYPES(table) .type_count = COUNT(table), .types = (table)

/*
 * No document states a maximum of K for rk3588 and rk3576 above the depth at which segments begin (D4, Q9): this one
 * bounds the arithmetic. On the other chips the guide says 10240; the recorded maxima are larger (facts 14).
 */
#define K_UNBOUNDED (1u << 20)

/*
 * How fast chips are taken to be: as in npumatmul/chips/timing/constants.py, which says where each constant comes from;
 * the tests compare both. Start, joining, binding and conversion are the same for all of them, nothing being known of
 * others than rk3588; the peaks are documented ones less the share that rk3588 falls short of its own.
 */
#define TIMING(banks, one_core, all_cores, host, ...)                                                         \
  .timing.of = {                                                                                              \
      [START_SECONDS] = 30.0e-6,           [JOIN_SECONDS] = 24.3e-6,       [BIND_SECONDS] = 4.9e-6,           \
      [NORMAL_C_SECONDS] = 2.48e-9,        [BUFFER_BYTES] = (banks)*32768, [BANDWIDTH_ONE_CORE] = (one_core), \
      [BANDWIDTH_ALL_CORES] = (all_cores), [HOST_BANDWIDTH] = (host),      __VA_ARGS__}
#define SHARE 0.916

/* clang-format off */
static const sim_chip chips[SIM_CHIPS] = {
    {.soc = "rk3562", .index = 0, .cores = 1, .since = 152, .k_max_1_6_0 = 12352, .k_max = 12352,
     .documented_k_max = 10240, .k_segment = 0, .transposed_b = true, .domains = SIM_DOMAINS_MAX,
     TIMING(8, 8.43e9, 8.43e9, 10.14e9 * 0.212, [PEAK_FLOAT16] = 0.5e12 * SHARE, [PEAK_INT8] = 1e12 * SHARE),
     TYPES(rk3562_types)},
    {.soc = "rk3566", .index = 1, .cores = 1, .since = 152, .k_max_1_6_0 = 14336, .k_max = 14336,
     .documented_k_max = 10240, .k_segment = 0, .transposed_b = false, .domains = SIM_DOMAINS_MAX,
     TIMING(8, 8.43e9, 8.43e9, 10.14e9 * 0.212, [PEAK_FLOAT16] = 0.46e12 * SHARE, [PEAK_INT8] = 0.92e12 * SHARE),
     TYPES(rk3566_types)},
    /* The same NPU as rk3566, and nothing recorded of its own. */
    {.soc = "rk3568", .index = 2, .cores = 1, .since = 152, .k_max_1_6_0 = 14336, .k_max = 14336,
     .documented_k_max = 10240, .k_segment = 0, .transposed_b = false, .domains = SIM_DOMAINS_MAX,
     TIMING(8, 8.43e9, 8.43e9, 10.14e9 * 0.212, [PEAK_FLOAT16] = 0.46e12 * SHARE, [PEAK_INT8] = 0.92e12 * SHARE),
     TYPES(rk3566_types)},
    {.soc = "rk3576", .index = 3, .cores = 2, .since = 200, .k_max_1_6_0 = 0, .k_max = K_UNBOUNDED,
     .documented_k_max = K_UNBOUNDED, .k_segment = 4096, .transposed_b = true, .domains = SIM_DOMAINS_MAX,
     TIMING(8, 11.1e9, 15.5e9, 10.14e9 * 0.443, [PEAK_FLOAT16] = 1.5e12 * SHARE, [PEAK_INT8] = 3e12 * SHARE,
            [PEAK_INT4] = 6e12 * SHARE), TYPES(rk3576_types)},
    {.soc = "rk3588", .index = 4, .cores = 3, .since = 152, .k_max_1_6_0 = 10304, .k_max = K_UNBOUNDED,
     .documented_k_max = K_UNBOUNDED, .k_segment = 8192, .transposed_b = true, .domains = SIM_DOMAINS_MAX,
     TIMING(12, 11.1e9, 28.6e9, 10.14e9, [PEAK_FLOAT16] = 0.938e12, [PEAK_INT8] = 1.876e12, [PEAK_INT4] = 3.752e12,
            [NORMAL_PEAK_INT4] = 40e9), TYPES(rk3588_types)},
};
/* clang-format on */

/* By number. 15 has no name in the vendor's table either (facts 1.4). */
static const char *const type_names[SIM_TYPES_MAX] = {
    [RKNN_FLOAT16_MM_FLOAT16_TO_FLOAT32] = "RKNN_FLOAT16_MM_FLOAT16_TO_FLOAT32",
    [RKNN_INT8_MM_INT8_TO_INT32] = "RKNN_INT8_MM_INT8_TO_INT32",
    [RKNN_INT8_MM_INT8_TO_INT8] = "RKNN_INT8_MM_INT8_TO_INT8",
    [RKNN_FLOAT16_MM_FLOAT16_TO_FLOAT16] = "RKNN_FLOAT16_MM_FLOAT16_TO_FLOAT16",
    [RKNN_FLOAT16_MM_INT8_TO_FLOAT32] = "RKNN_FLOAT16_MM_INT8_TO_FLOAT32",
    [RKNN_FLOAT16_MM_INT8_TO_FLOAT16] = "RKNN_FLOAT16_MM_INT8_TO_FLOAT16",
    [RKNN_FLOAT16_MM_INT4_TO_FLOAT32] = "RKNN_FLOAT16_MM_INT4_TO_FLOAT32",
    [RKNN_FLOAT16_MM_INT4_TO_FLOAT16] = "RKNN_FLOAT16_MM_INT4_TO_FLOAT16",
    [RKNN_INT8_MM_INT8_TO_FLOAT32] = "RKNN_INT8_MM_INT8_TO_FLOAT32",
    [RKNN_INT4_MM_INT4_TO_INT16] = "RKNN_INT4_MM_INT4_TO_INT16",
    [RKNN_INT8_MM_INT4_TO_INT32] = "RKNN_INT8_MM_INT4_TO_INT32",
    [RKNN_FLOAT16_MM_INT4_TO_BFLOAT16] = "RKNN_FLOAT16_MM_INT4_TO_BFLOAT16",
};

/* By number; 0 where no matmul uses the type. */
/* clang-format off */
static const uint8_t dtype_bits[RKNN_TENSOR_TYPE_MAX] = {
    [I4] = 4, [I8] = 8, [F16] = 16, [I16] = 16, [F32] = 32, [I32] = 32,
};
/* clang-format on */

const sim_chip *sim_chip_at(int index) { return index < SIM_CHIPS ? &chips[index] : NULL; }

const sim_chip *sim_find_chip(const char *soc) {
  for (size_t i = 0; i < SIM_CHIPS; i++) {
    if (strcmp(chips[i].soc, soc) == 0) return &chips[i];
  }
  return NULL;
}

const sim_type *sim_find_type(const sim_chip *chip, rknn_matmul_type type) {
  for (size_t i = 0; i < chip->type_count; i++) {
    if (chip->types[i].type == type) return &chip->types[i];
  }
  return NULL;
}

const char *sim_type_name(rknn_matmul_type type) {
  return (unsigned)type < SIM_TYPES_MAX ? type_names[(unsigned)type] : NULL;
}

uint32_t sim_dtype_bits(rknn_tensor_type dtype) {
  return (unsigned)dtype < RKNN_TENSOR_TYPE_MAX ? dtype_bits[(unsigned)dtype] : 0;
}
