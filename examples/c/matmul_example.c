#define _POSIX_C_SOURCE 199309L
#include "matmul_example.h"

#include <errno.h>
#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define F16 RKNN_TENSOR_FLOAT16
#define F32 RKNN_TENSOR_FLOAT32
#define BF16 RKNN_TENSOR_BFLOAT16
#define I4 RKNN_TENSOR_INT4
#define I8 RKNN_TENSOR_INT8
#define I16 RKNN_TENSOR_INT16
#define I32 RKNN_TENSOR_INT32
#define LAYER RKNN_QUANT_TYPE_PER_LAYER_SYM
#define CHANNEL RKNN_QUANT_TYPE_PER_CHANNEL_SYM
#define GROUP RKNN_QUANT_TYPE_PER_GROUP_SYM

/* Which chip knows which type is the library's to say; it refuses the others. */
static const example_type types[] = {
    {RKNN_FLOAT16_MM_FLOAT16_TO_FLOAT32, "RKNN_FLOAT16_MM_FLOAT16_TO_FLOAT32", F16, F16, F32, LAYER},
    {RKNN_INT8_MM_INT8_TO_INT32, "RKNN_INT8_MM_INT8_TO_INT32", I8, I8, I32, LAYER},
    {RKNN_INT8_MM_INT8_TO_INT8, "RKNN_INT8_MM_INT8_TO_INT8", I8, I8, I8, LAYER},
    {RKNN_FLOAT16_MM_FLOAT16_TO_FLOAT16, "RKNN_FLOAT16_MM_FLOAT16_TO_FLOAT16", F16, F16, F16, LAYER},
    {RKNN_FLOAT16_MM_INT8_TO_FLOAT32, "RKNN_FLOAT16_MM_INT8_TO_FLOAT32", F16, I8, F32, CHANNEL},
    {RKNN_FLOAT16_MM_INT8_TO_FLOAT16, "RKNN_FLOAT16_MM_INT8_TO_FLOAT16", F16, I8, F16, CHANNEL},
    {RKNN_FLOAT16_MM_INT4_TO_FLOAT32, "RKNN_FLOAT16_MM_INT4_TO_FLOAT32", F16, I4, F32, CHANNEL},
    {RKNN_FLOAT16_MM_INT4_TO_FLOAT16, "RKNN_FLOAT16_MM_INT4_TO_FLOAT16", F16, I4, F16, GROUP},
    {RKNN_INT8_MM_INT8_TO_FLOAT32, "RKNN_INT8_MM_INT8_TO_FLOAT32", I8, I8, F32, GROUP},
    {RKNN_INT4_MM_INT4_TO_INT16, "RKNN_INT4_MM_INT4_TO_INT16", I4, I4, I16, LAYER},
    {RKNN_INT8_MM_INT4_TO_INT32, "RKNN_INT8_MM_INT4_TO_INT32", I8, I4, I32, CHANNEL},
    {RKNN_FLOAT16_MM_INT4_TO_BFLOAT16, "RKNN_FLOAT16_MM_INT4_TO_BFLOAT16", F16, I4, BF16, CHANNEL},
    {RKNN_INT8_MM_INT4_TO_FLOAT16, "RKNN_INT8_MM_INT4_TO_FLOAT16", I8, I4, F16, CHANNEL},
};

const example_type *example_find_type(int number) {
  for (size_t i = 0; i < sizeof types / sizeof *types; i++) {
    if (types[i].number == number) return &types[i];
  }
  return NULL;
}

const char *example_element_name(rknn_tensor_type type) {
  static const char *const names[] = {"FP32",  "FP16",   "INT8",  "UINT8", "INT16", "UINT16",
                                      "INT32", "UINT32", "INT64", "BOOL",  "INT4",  "BF16"};
  return (size_t)type < sizeof names / sizeof *names ? names[type] : "UNKNOW";
}

int example_parse_numbers(const char *text, int *numbers, int most) {
  int count = 0;
  for (;;) {
    char *end;
    errno = 0;
    const long value = strtol(text, &end, 0);
    if (end == text || errno != 0 || value < 0 || value > INT_MAX || count == most) return -1;
    numbers[count++] = (int)value;
    if (*end == '\0') return count;
    if (*end != ',') return -1;
    text = end + 1;
  }
}

int example_parse_argument(const char *what, const char *text) {
  int number;
  if (example_parse_numbers(text, &number, 1) == 1) return number;
  fprintf(stderr, "%s must be a whole number, not '%s'\n", what, text);
  return -1;
}

/* ---- elements ---------------------------------------------------------------------------------------------------- */

static int is_float(rknn_tensor_type type) { return type == F16 || type == F32 || type == BF16; }

/* For values that a half holds exactly, as those of example_random_matrix. */
static uint16_t half_of(float value) {
  if (value == 0.0f) return 0;
  int exponent;
  const float fraction = frexpf(fabsf(value), &exponent); /* in [1/2, 1) */
  const uint16_t sign = value < 0.0f ? 0x8000 : 0;
  return (uint16_t)(sign | (uint16_t)((exponent + 14) << 10) | ((uint16_t)(fraction * 2048.0f) & 0x3ff));
}

static double value_of_half(uint16_t half) {
  const int exponent = half >> 10 & 31, fraction = half & 0x3ff;
  double magnitude = exponent == 0 ? ldexp(fraction, -24) : ldexp(1024 + fraction, exponent - 25);
  if (exponent == 31) magnitude = fraction ? (double)NAN : (double)INFINITY;
  return half & 0x8000 ? -magnitude : magnitude;
}

/* Buffers of the runtime are aligned, but nothing says that a tensor in them must be: memcpy. */
static void put(void *to, rknn_tensor_type type, size_t index, float value) {
  uint8_t *bytes = (uint8_t *)to;
  if (type == F16) {
    const uint16_t half = half_of(value);
    memcpy(bytes + index * 2, &half, 2);
  } else if (type == I4) { /* the even element in the low nibble, from runtime 2.0.0 on */
    const int shift = index % 2 ? 4 : 0;
    bytes[index / 2] = (uint8_t)((bytes[index / 2] & ~(15 << shift)) | (((int)value & 15) << shift));
  } else {
    bytes[index] = (uint8_t)(int8_t)value;
  }
}

static double get(const void *from, rknn_tensor_type type, size_t index) {
  const uint8_t *bytes = (const uint8_t *)from;
  uint16_t half;
  int16_t number16;
  int32_t number32;
  uint32_t bits;
  float number;
  switch (type) {
    case F32:
      memcpy(&number, bytes + index * 4, 4);
      return number;
    case F16:
      memcpy(&half, bytes + index * 2, 2);
      return value_of_half(half);
    case BF16: /* the upper half of a float32 */
      memcpy(&half, bytes + index * 2, 2);
      bits = (uint32_t)half << 16;
      memcpy(&number, &bits, 4);
      return number;
    case I32:
      memcpy(&number32, bytes + index * 4, 4);
      return number32;
    case I16:
      memcpy(&number16, bytes + index * 2, 2);
      return number16;
    case I4: {
      const int nibble = bytes[index / 2] >> (index % 2 ? 4 : 0) & 15;
      return nibble < 8 ? nibble : nibble - 16;
    }
    default:
      return (int8_t)bytes[index];
  }
}

float *example_random_matrix(const example_type *type, rknn_tensor_type element, size_t count, uint32_t seed) {
  float *values = (float *)malloc((count ? count : 1) * sizeof *values);
  if (!values) return NULL;
  uint32_t state = seed;
  for (size_t i = 0; i < count; i++) {
    state = state * 1664525u + 1013904223u;
    const int random = (int)(state >> 16);
    if (is_float(element)) {
      values[i] = (float)(random % 2049 - 1024) / 1024.0f; /* -1 .. 1, eleven bits: exact in a half */
    } else if (element == I4) {
      values[i] = (float)(random % 16 - 8);
    } else if (type->c == I8) {
      values[i] = (float)(random % 21 - 10); /* small, so that results stay within int8 */
    } else {
      values[i] = (float)(random % 256 - 128);
    }
  }
  return values;
}

/* ---- quantization ------------------------------------------------------------------------------------------------- */

example_scales example_choose_scales(const example_type *type, float group_scale) {
  example_scales scales = {1.0f, 1.0f, 1.0f};
  if (type->c == I8) {
    scales.a = 0.2f;
    scales.b = 0.1f;
    scales.c = 0.8f;
  } else if (type->b_quant_type == GROUP) {
    scales.b = group_scale;
  } else if (type->b_quant_type == CHANNEL && is_float(type->c)) {
    scales.b = 0.1f; /* the integers of type 11 stay as they are */
  }
  return scales;
}

static int set_scale(rknn_matmul_ctx ctx, const rknn_matmul_tensor_attr *attr, float scale, int count) {
  rknn_quant_params params;
  memset(&params, 0, sizeof params);
  memcpy(params.name, attr->name, sizeof params.name);
  params.scale = (float *)malloc((size_t)count * sizeof(float));
  params.zp = (int32_t *)calloc((size_t)count, sizeof(int32_t));
  int code = RKNN_ERR_MALLOC_FAIL;
  if (params.scale && params.zp) {
    for (int i = 0; i < count; i++) params.scale[i] = scale;
    params.scale_len = count;
    params.zp_len = count;
    code = rknn_matmul_set_quant_params(ctx, &params);
  }
  free(params.scale); /* the runtime has copied them */
  free(params.zp);
  if (code != RKNN_SUCC) fprintf(stderr, "rknn_matmul_set_quant_params of %s failed: %d\n", attr->name, code);
  return code;
}

int example_set_scales(rknn_matmul_ctx ctx, const example_type *type, const rknn_matmul_io_attr *attr,
                       const example_scales *scales, int max_k, int max_n, int group_size) {
  int code = RKNN_SUCC;
  if (type->c == I8) {
    code = set_scale(ctx, &attr->A, scales->a, 1);
    if (code == RKNN_SUCC) code = set_scale(ctx, &attr->B, scales->b, 1);
    if (code == RKNN_SUCC) code = set_scale(ctx, &attr->C, scales->c, 1);
  } else if (type->b_quant_type == GROUP) {
    code = set_scale(ctx, &attr->B, scales->b, max_n * (max_k / group_size));
  } else if (type->b_quant_type == CHANNEL && is_float(type->c)) {
    code = set_scale(ctx, &attr->B, scales->b, max_n);
  }
  return code;
}

/* ---- layouts ------------------------------------------------------------------------------------------------------ */

/* Where (row, column) of A or C stands: normal is 2-D, native is [columns/group, rows, group]. */
static size_t ac_index(const rknn_matmul_tensor_attr *attr, size_t rows, size_t columns, size_t row, size_t column) {
  if (attr->n_dims == 2) return row * columns + column;
  const size_t group = attr->dims[2];
  return (column / group * rows + row) * group + column % group;
}

void example_write_a(void *to, const float *a, const rknn_matmul_tensor_attr *attr, int m, int k) {
  const size_t rows = (size_t)m, columns = (size_t)k;
  for (size_t row = 0; row < rows; row++) {
    for (size_t column = 0; column < columns; column++) {
      put(to, attr->type, ac_index(attr, rows, columns, row, column), a[row * columns + column]);
    }
  }
}

int example_write_b(void *to, const float *b, const rknn_matmul_tensor_attr *attr, rknn_matmul_info *info, int k,
                    int n) {
  const size_t rows = (size_t)k, columns = (size_t)n;
  const int transposed = info->B_layout == RKNN_MM_LAYOUT_TP_NORM, native = info->B_layout == RKNN_MM_LAYOUT_NATIVE;
  void *normal = native ? calloc(rows * columns, 2) : to;
  if (!normal) return -1;
  for (size_t row = 0; row < rows; row++) {
    for (size_t column = 0; column < columns; column++) {
      put(normal, attr->type, transposed ? column * rows + row : row * columns + column, b[row * columns + column]);
    }
  }
  if (!native) return 0;
  const int code = rknn_B_normal_layout_to_native_layout(normal, to, k, n, info);
  free(normal);
  if (code != RKNN_SUCC) fprintf(stderr, "rknn_B_normal_layout_to_native_layout failed: %d\n", code);
  return code == RKNN_SUCC ? 0 : -1;
}

double *example_read_c(const void *from, const rknn_matmul_tensor_attr *attr, int m, int n) {
  const size_t rows = (size_t)m, columns = (size_t)n;
  double *c = (double *)malloc(rows * columns * sizeof *c);
  if (!c) return NULL;
  for (size_t row = 0; row < rows; row++) {
    for (size_t column = 0; column < columns; column++) {
      c[row * columns + column] = get(from, attr->type, ac_index(attr, rows, columns, row, column));
    }
  }
  return c;
}

/* ---- the check ---------------------------------------------------------------------------------------------------- */

/* One row of A x B: int64 sums for integers, double for floats. */
static void reference_row(const example_type *type, const float *a_row, const float *b, int k, int n, double *result,
                          int64_t *sums) {
  memset(sums, 0, (size_t)n * sizeof *sums);
  for (int column = 0; column < n; column++) result[column] = 0.0;
  for (int inner = 0; inner < k; inner++) {
    const float *b_row = b + (size_t)inner * (size_t)n;
    if (is_float(type->a)) {
      for (int column = 0; column < n; column++) result[column] += (double)a_row[inner] * b_row[column];
    } else {
      for (int column = 0; column < n; column++) sums[column] += (int64_t)a_row[inner] * (int64_t)b_row[column];
    }
  }
  if (is_float(type->a)) return;
  for (int column = 0; column < n; column++) result[column] = (double)sums[column];
}

int example_result_is_correct(const example_type *type, const example_scales *scales, const float *a, const float *b,
                              const double *c, int m, int k, int n) {
  double *expected = (double *)malloc((size_t)n * sizeof *expected);
  int64_t *sums = (int64_t *)malloc((size_t)n * sizeof *sums);
  if (!expected || !sums) {
    fprintf(stderr, "no memory for the check\n");
    free(expected);
    free(sums);
    return 0;
  }
  double products = 0.0, squares = 0.0, expected_squares = 0.0;
  size_t wrong = 0;
  for (int row = 0; row < m; row++) {
    reference_row(type, a + (size_t)row * (size_t)k, b, k, n, expected, sums);
    for (int column = 0; column < n; column++) {
      const double got = c[(size_t)row * (size_t)n + (size_t)column];
      double want = expected[column] * (double)scales->a * (double)scales->b / (double)scales->c;
      if (type->c == I8) { /* whether it is rounded or truncated is not documented, nor what happens outside of int8 */
        want = want < -128.0 ? -128.0 : want > 127.0 ? 127.0 : want;
        wrong += fabs(got - want) > 1.0;
      } else if (!is_float(type->c)) {
        wrong += got != want;
      }
      products += got * want;
      squares += got * got;
      expected_squares += want * want;
    }
  }
  free(expected);
  free(sums);
  if (!is_float(type->c)) return wrong == 0;
  return squares > 0.0 && products / sqrt(squares) / sqrt(expected_squares) >= 0.9999; /* false for a nan */
}

/* ---- printing ------------------------------------------------------------------------------------------------------ */

void example_print_attr(const rknn_matmul_tensor_attr *attr) {
  printf("  name=%s, dims=(", attr->name);
  for (uint32_t i = 0; i < attr->n_dims; i++) printf("%s%u", i ? ", " : "", attr->dims[i]);
  printf("), size=%u, type=%s\n", attr->size, example_element_name(attr->type));
}

void example_print_io_attr(const rknn_matmul_io_attr *attr) {
  printf("input/output tensor attribute:\n");
  example_print_attr(&attr->A);
  example_print_attr(&attr->B);
  example_print_attr(&attr->C);
}

void example_print_tensor(const char *name, const void *data, const rknn_matmul_tensor_attr *attr) {
  size_t count = 1;
  for (uint32_t i = 0; i < attr->n_dims; i++) count *= attr->dims[i];
  const size_t width = attr->n_dims ? attr->dims[attr->n_dims - 1] : 1;
  printf("  %s%s:\n", name, attr->n_dims == 2 ? "" : "_native");
  for (size_t i = 0; i < count; i++) {
    const double value = get(data, attr->type, i);
    if (is_float(attr->type)) {
      printf("%5.2f ", value);
    } else {
      printf("%*d ", attr->type == I32 ? 6 : 4, (int)value);
    }
    if (i % width == width - 1) printf("\n");
  }
}

void example_print_verdict(const example_type *type, int correct, int m, int k, int n, int ac_layout, int b_layout) {
  printf("%s matmul result is %s M x K x N is %d x %d x %d AC_layout is %d B_layout is %d\n",
         type->name + strlen("RKNN_"), correct ? "correct" : "wrong", m, k, n, ac_layout, b_layout);
}

static int64_t now_us(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (int64_t)now.tv_sec * 1000000 + now.tv_nsec / 1000;
}

static double frames_per_second(int64_t us) { return us > 0 ? 1e6 / (double)us : 0.0; }

int64_t example_run(rknn_matmul_ctx ctx, int loops) {
  int64_t total = 0;
  printf("Begin perf ...\n");
  for (int i = 0; i < loops; i++) {
    const int64_t start = now_us();
    const int code = rknn_matmul_run(ctx);
    const int64_t us = now_us() - start;
    if (code != RKNN_SUCC) {
      fprintf(stderr, "rknn_matmul_run failed: %d\n", code);
      return code < 0 ? code : -1;
    }
    printf("%4d: Elapse Time = %.2fms, FPS = %.2f\n", i, (double)us / 1000.0, frames_per_second(us));
    total += us;
  }
  return total / loops;
}
