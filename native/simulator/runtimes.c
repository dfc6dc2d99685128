#include "runtimes.h"

#include <stddef.h>
#include <string.h>

#define BIT(type) (1u << (type))

#define TYPES_1_5_2 (BIT(1) | BIT(2)) /* as tensor types, whose numbers for halves and int8 are the same */
#define TYPES_1_6_0 (TYPES_1_5_2 | BIT(10))
#define TYPES_2_0_0 (TYPES_1_6_0 | BIT(3) | BIT(4) | BIT(5) | BIT(6) | BIT(7) | BIT(8) | BIT(11))
#define TYPES_2_1_0 (TYPES_2_0_0 | BIT(9))
#define TYPES_2_3_0 (TYPES_2_1_0 | BIT(12))
#define TYPES_2_3_2 (TYPES_2_3_0 | BIT(15))

/* In place of the vendor's hash stands what this is, beside the date of the version it follows (facts 0). */
#define VERSION(version, date) version " (npumatmul-simulator@" date ")"

/* clang-format off */
static const sim_runtime runtimes[] = {
    {.name = "1.5.2", .number = 152, .api_version = VERSION("1.5.2", "2023-08-23T15:29:04"), .driver_version = "0.9.2",
     .info_bytes = 24, .types = TYPES_1_5_2, .named_types = TYPES_1_5_2, .int4_low_first = false, .segments = false,
     .transposed_b = false, .quant_numbers = QUANT_NUMBERS_NONE},
    {.name = "1.6.0", .number = 160, .api_version = VERSION("1.6.0", "2023-12-13T17:32:13"), .driver_version = "0.9.2",
     .info_bytes = 24, .types = TYPES_1_6_0, .named_types = TYPES_1_6_0, .int4_low_first = false, .segments = false,
     .transposed_b = false, .quant_numbers = QUANT_NUMBERS_NONE},
    /* TP_NORM came with 2.0.0b19 (facts 0): the first beta has none. */
    {.name = "2.0.0b0", .number = 200, .api_version = VERSION("2.0.0b0", "2024-03-25T00:00:00"),
     .driver_version = "0.9.6", .info_bytes = 64, .types = TYPES_2_0_0, .named_types = TYPES_2_0_0 & ~BIT(8),
     .int4_low_first = true, .segments = true, .transposed_b = false, .quant_numbers = QUANT_NUMBERS_LAYER_CHANNEL},
    {.name = "2.1.0", .number = 210, .api_version = VERSION("2.1.0", "2024-08-07T19:28:19"), .driver_version = "0.9.6",
     .info_bytes = 64, .types = TYPES_2_1_0, .named_types = TYPES_2_1_0, .int4_low_first = true, .segments = true,
     .transposed_b = true, .quant_numbers = QUANT_NUMBERS_ENUM},
    {.name = "2.3.0", .number = 230, .api_version = VERSION("2.3.0", "2024-11-07T11:35:33"), .driver_version = "0.9.6",
     .info_bytes = 64, .types = TYPES_2_3_0, .named_types = TYPES_2_3_0, .int4_low_first = true, .segments = true,
     .transposed_b = true, .quant_numbers = QUANT_NUMBERS_ENUM},
    {.name = "2.3.2", .number = 232, .api_version = VERSION("2.3.2", "2025-04-09T09:09:27"), .driver_version = "0.9.8",
     .info_bytes = 64, .types = TYPES_2_3_2, .named_types = TYPES_2_3_0, .int4_low_first = true, .segments = true,
     .transposed_b = true, .quant_numbers = QUANT_NUMBERS_ENUM},
};
/* clang-format on */

enum { RUNTIMES = sizeof runtimes / sizeof *runtimes };

const sim_runtime *sim_runtime_at(int index) { return index < RUNTIMES ? &runtimes[index] : NULL; }

const sim_runtime *sim_find_runtime(const char *name) {
  for (int i = 0; i < RUNTIMES; i++) {
    if (strcmp(runtimes[i].name, name) == 0) return &runtimes[i];
  }
  return NULL;
}
