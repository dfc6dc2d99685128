#include "timing.h"

#include <stdlib.h>
#include <string.h>

/* With fewer rows beside two groups of B, the second group gives way. */
#define FEWEST_ROWS 4
#define LARGEST 1e18

static const char *const names[SIM_CONSTANTS] = {
    [START_SECONDS] = "start_seconds",
    [JOIN_SECONDS] = "join_seconds",
    [BUFFER_BYTES] = "buffer_bytes",
    [BANDWIDTH_ONE_CORE] = "bandwidth_one_core",
    [BANDWIDTH_ALL_CORES] = "bandwidth_all_cores",
    [BIND_SECONDS] = "bind_seconds",
    [HOST_BANDWIDTH] = "host_bandwidth",
    [NORMAL_C_SECONDS] = "normal_c_seconds",
    [PEAK_FLOAT16] = "peak_float16",
    [PEAK_INT8] = "peak_int8",
    [PEAK_INT4] = "peak_int4",
    [NORMAL_PEAK_FLOAT16] = "normal_peak_float16",
    [NORMAL_PEAK_INT8] = "normal_peak_int8",
    [NORMAL_PEAK_INT4] = "normal_peak_int4",
};

static bool read_one(const char *text, size_t length, sim_timing *constants) {
  const char *equals = memchr(text, '=', length);
  if (!equals) return false;
  int which = 0;
  const size_t name = (size_t)(equals - text), digits = length - name - 1;
  while (which < SIM_CONSTANTS && (strlen(names[which]) != name || strncmp(names[which], text, name) != 0)) which++;
  if (which == SIM_CONSTANTS || constants->of[which] != 0) return false;
  /* strtod also takes blanks, signs, words and hexadecimal numbers */
  if (digits == 0 || strspn(equals + 1, "0123456789.eE+-") < digits || strchr("eE+-", equals[1])) return false;
  char *end;
  constants->of[which] = strtod(equals + 1, &end);
  return end == text + length && constants->of[which] > 0 && constants->of[which] < LARGEST;
}

bool sim_timing_read(const char *text, sim_timing *constants) {
  sim_timing read = {{0}};
  for (const char *rest = *text ? text : NULL; rest;) {
    const char *comma = strchr(rest, ',');
    if (!read_one(rest, comma ? (size_t)(comma - rest) : strlen(rest), &read)) return false;
    rest = comma ? comma + 1 : NULL;
  }
  *constants = read;
  return true;
}

sim_timing sim_timing_of(const sim_chip *chip, const sim_timing *instead) {
  sim_timing timing = chip->timing;
  for (int i = 0; i < SIM_CONSTANTS; i++) {
    if (instead->of[i] != 0) timing.of[i] = instead->of[i];
  }
  return timing;
}

/* Rows of A that stay on the chip; whether B is read meanwhile. */
static size_t resident_rows(const sim_timing *timing, const sim_type *type, size_t K, bool *overlap) {
  const int64_t row = (int64_t)(K * sim_dtype_bits(type->a) / 8), buffer = (int64_t)timing->of[BUFFER_BYTES];
  const int64_t group = type->b_tile_n * row, room = buffer - 2 * group;
  *overlap = room >= FEWEST_ROWS * row;
  if (*overlap) return (size_t)(room / row);
  return buffer - group >= row ? (size_t)((buffer - group) / row) : 1;
}

double sim_run_seconds(const sim_timing *timing, const sim_type *type, size_t M, size_t K, size_t N, int cores,
                       bool native_ac) {
  const double *of = timing->of, m = (double)M, k = (double)K, n = (double)N;
  double together = cores * of[BANDWIDTH_ONE_CORE];
  if (together > of[BANDWIDTH_ALL_CORES]) together = of[BANDWIDTH_ALL_CORES];
  bool overlap;
  const size_t rows = resident_rows(timing, type, K, &overlap), readings = (M + rows - 1) / rows;
  const double a = m * k * sim_dtype_bits(type->a) / 8, b = k * n * sim_dtype_bits(type->b) / 8,
               c = m * n * sim_dtype_bits(type->c) / 8;
  const double normal_peak = of[NORMAL_PEAK_FLOAT16 + (int)type->product];
  const bool by_peak = native_ac || normal_peak != 0;
  const double peak = native_ac || normal_peak == 0 ? of[PEAK_FLOAT16 + (int)type->product] : normal_peak;
  const double traffic = ((double)readings * b + a + c) / (together / cores), products = 2 * m * k * n / peak;
  double busy = traffic + products;
  if (overlap) busy = traffic > products ? traffic : products;
  return of[START_SECONDS] + busy + (by_peak ? 0 : m * n * of[NORMAL_C_SECONDS]);
}

double sim_bind_seconds(const sim_timing *timing, size_t packed_bytes) {
  return timing->of[BIND_SECONDS] + (double)packed_bytes / timing->of[HOST_BANDWIDTH];
}
