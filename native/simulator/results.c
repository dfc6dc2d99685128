#include "results.h"

#include <math.h>
#include <string.h>

#include "products.h"

/* ---- reading and writing in place: an element of C is never wider than a sum, so ascending order is safe --------- */

static int32_t int_at(const void *sums, size_t i) {
  int32_t value;
  memcpy(&value, (const char *)sums + i * sizeof value, sizeof value);
  return value;
}

static float float_at(const void *sums, size_t i) {
  float value;
  memcpy(&value, (const char *)sums + i * sizeof value, sizeof value);
  return value;
}

static void put(void *to, size_t i, const void *element, size_t bytes) {
  memcpy((char *)to + i * bytes, element, bytes);
}

static void put_float(void *to, size_t i, float value) { put(to, i, &value, sizeof value); }

static void put_half(void *to, size_t i, float value) {
  uint16_t half = sim_float_to_half(value);
  put(to, i, &half, sizeof half);
}

/* ---- parameters -------------------------------------------------------------------------------------------------- */

static float b_scale(const sim_context *context, size_t n) {
  const float *scales = context->quant.b.scales;
  return !scales ? 1 : scales[context->b_granularity == PER_CHANNEL ? n : 0];
}

static int32_t b_zero_point(const sim_context *context, size_t n) {
  const int32_t *zero_points = context->quant.b.zero_points;
  return !zero_points ? 0 : zero_points[context->b_granularity == PER_CHANNEL ? n : 0];
}

bool sim_a_zero_point_counts(const sim_context *context) {
  rknn_matmul_type type = context->type->type;
  bool scaled = type == RKNN_INT8_MM_INT8_TO_INT8 || type == RKNN_INT8_MM_INT8_TO_FLOAT32 ||
                (type == RKNN_INT8_MM_INT8_TO_INT32 && context->b_granularity == PER_CHANNEL);
  return scaled && context->quant.a_zero_point != 0;
}

/* Sum of (a - zA)(b - zB), from the sum of a b. */
static int64_t corrected(const sim_context *context, const sim_sums *sums, size_t r, size_t n) {
  int64_t sum = int_at(sums->sums, r * sums->width + n);
  int64_t b_zero = b_zero_point(context, sums->first_n + n);
  int64_t a_zero = sim_a_zero_point_counts(context) ? context->quant.a_zero_point : 0;
  if (b_zero != 0) sum -= b_zero * sums->row_sums[r];
  if (a_zero != 0) sum -= a_zero * sums->column_sums[n];
  return sum + (int64_t)context->now->K * a_zero * b_zero;
}

/* ---- one function per kind of C; each returns how many elements did not fit -------------------------------------- */

static size_t keep(const sim_context *context, const sim_sums *sums) {
  (void)context, (void)sums;
  return 0;
}

/* Type 2: with scales per channel the columns are brought to one common scale (Q22), rounded to nearest even. */
static size_t to_common_scale(const sim_context *context, const sim_sums *sums) {
  if (context->b_granularity != PER_CHANNEL) return 0;
  size_t unfit = 0;
  for (size_t r = 0; r < sums->rows; r++) {
    for (size_t n = 0; n < sums->width; n++) {
      double scale = (double)b_scale(context, sums->first_n + n) / sums->common_scale;
      double value = rint((double)corrected(context, sums, r, n) * scale);
      int32_t result = value > INT32_MAX ? INT32_MAX : value < INT32_MIN ? INT32_MIN : (int32_t)value;
      unfit += (double)result != value;
      put(sums->sums, r * sums->width + n, &result, sizeof result);
    }
  }
  return unfit;
}

/*
 * Type 3: (sum (a - zA)(b - zB)) sA sB / sC + zC, cut off towards zero as the vendor's demo does it with a C cast.
 * Rounding and overflow of the hardware are not documented (Q20); it saturates here, where the cast would be undefined.
 */
static int8_t to_int8(double scaled, bool *unfit) {
  double cut = trunc(scaled);
  *unfit = cut > INT8_MAX || cut < INT8_MIN;
  return cut > INT8_MAX ? INT8_MAX : cut < INT8_MIN ? INT8_MIN : (int8_t)cut;
}

static size_t to_int8s(const sim_context *context, const sim_sums *sums) {
  const sim_quant *quant = &context->quant;
  size_t count = 0;
  for (size_t r = 0; r < sums->rows; r++) {
    for (size_t n = 0; n < sums->width; n++) {
      double scale = (double)quant->a_scale * (double)b_scale(context, sums->first_n + n) / (double)quant->c_scale;
      bool unfit;
      int8_t result = to_int8((double)corrected(context, sums, r, n) * scale + (double)quant->c_zero_point, &unfit);
      count += unfit;
      put(sums->sums, r * sums->width + n, &result, sizeof result);
    }
  }
  return count;
}

/* Type 9: the sum times sA sB; the vendor's demo, with one scale for A, is the case sA = 1. */
static size_t ints_to_floats(const sim_context *context, const sim_sums *sums) {
  if (context->b_granularity == PER_GROUP) return 0; /* the totals are floats already */
  for (size_t r = 0; r < sums->rows; r++) {
    for (size_t n = 0; n < sums->width; n++) {
      double scale = (double)context->quant.a_scale * (double)b_scale(context, sums->first_n + n);
      put_float(sums->sums, r * sums->width + n, (float)((double)corrected(context, sums, r, n) * scale));
    }
  }
  return 0;
}

/* Types 5 and 7: B's zero points are taken off before the products (run.c), its scales come here. */
static size_t scale_floats(const sim_context *context, const sim_sums *sums) {
  if (context->b_granularity == PER_GROUP) return 0;
  for (size_t r = 0; r < sums->rows; r++) {
    for (size_t n = 0; n < sums->width; n++) {
      size_t i = r * sums->width + n;
      put_float(sums->sums, i, float_at(sums->sums, i) * b_scale(context, sums->first_n + n));
    }
  }
  return 0;
}

static size_t narrow_floats(const sim_context *context, const sim_sums *sums) {
  (void)context;
  for (size_t i = 0; i < sums->rows * sums->width; i++) put_half(sums->sums, i, float_at(sums->sums, i));
  return 0;
}

static size_t scale_and_narrow_floats(const sim_context *context, const sim_sums *sums) {
  scale_floats(context, sums);
  return narrow_floats(context, sums);
}

/* Type 10. Whether the hardware saturates or wraps is not known (Q20): a setting chooses, and it is counted. */
static size_t to_int16s(const sim_context *context, const sim_sums *sums) {
  bool wrap = context->settings.overflow == OVERFLOW_WRAP;
  size_t unfit = 0;
  for (size_t i = 0; i < sums->rows * sums->width; i++) {
    int32_t wide = int_at(sums->sums, i);
    int32_t bounded = wide > INT16_MAX ? INT16_MAX : wide < INT16_MIN ? INT16_MIN : wide;
    unfit += bounded != wide;
    uint16_t narrow = (uint16_t)(wrap ? wide : bounded); /* the bits of an int16 */
    put(sums->sums, i, &narrow, sizeof narrow);
  }
  return unfit;
}

typedef size_t finisher(const sim_context *context, const sim_sums *sums);

static finisher *const finishers[SIM_TYPES_MAX] = {
    [RKNN_FLOAT16_MM_FLOAT16_TO_FLOAT32] = keep,
    [RKNN_INT8_MM_INT8_TO_INT32] = to_common_scale,
    [RKNN_INT8_MM_INT8_TO_INT8] = to_int8s,
    [RKNN_FLOAT16_MM_FLOAT16_TO_FLOAT16] = narrow_floats,
    [RKNN_FLOAT16_MM_INT8_TO_FLOAT32] = scale_floats,
    [RKNN_FLOAT16_MM_INT4_TO_FLOAT32] = scale_floats,
    [RKNN_FLOAT16_MM_INT4_TO_FLOAT16] = scale_and_narrow_floats,
    [RKNN_INT8_MM_INT8_TO_FLOAT32] = ints_to_floats,
    [RKNN_INT4_MM_INT4_TO_INT16] = to_int16s,
    [RKNN_INT8_MM_INT4_TO_INT32] = keep, /* scales have no effect (Q21) */
};

size_t sim_finish_sums(const sim_context *context, const sim_sums *sums) {
  return finishers[context->type->type](context, sums);
}

void sim_add_group(const sim_context *context, const sim_sums *sums, size_t group, float *totals) {
  const float *scales = context->quant.b.scales;
  bool integers = context->type->product != PRODUCT_F16;
  int64_t a_zero = sim_a_zero_point_counts(context) ? context->quant.a_zero_point : 0;
  double a_scale = integers ? (double)context->quant.a_scale : 1;
  for (size_t r = 0; r < sums->rows; r++) {
    for (size_t n = 0; n < sums->width; n++) {
      size_t i = r * sums->width + n;
      double sum = integers ? (double)int_at(sums->sums, i) : (double)float_at(sums->sums, i);
      if (a_zero != 0) sum -= (double)(a_zero * sums->column_sums[n]);
      double scale = scales ? (double)scales[group * context->now->N + sums->first_n + n] : 1;
      totals[i] += (float)(sum * scale * a_scale);
    }
  }
}
