/*
 * What the two examples share: the matmul types, values in their element types, layouts, the check of a result on the
 * CPU, and printing. Written to the documented API of runtime 2.1.0 and later; compiles as C and as C++.
 */
#ifndef MATMUL_EXAMPLE_H
#define MATMUL_EXAMPLE_H

#include <stddef.h>
#include <stdint.h>

#include "rknn_matmul_api.h"

#ifdef __cplusplus
extern "C" {
#endif

/* One matmul type: its name and elements, and how the examples quantize it. */
typedef struct {
  int number; /* rknn_matmul_type */
  const char *name;
  rknn_tensor_type a, b, c;
  int b_quant_type; /* rknn_matmul_quant_type */
} example_type;

/* NULL for a number that is no type. */
const example_type *example_find_type(int number);

/* "INT8" and so on. */
const char *example_element_name(rknn_tensor_type type);

/* Numbers separated by commas; how many were read, or -1 where text holds anything else or more than `most`. */
int example_parse_numbers(const char *text, int *numbers, int most);

/* The whole number that text is, or -1 with a message. */
int example_parse_argument(const char *what, const char *text);

/* Scales of the quantized types: one value each for A and C, one per column or group for B. */
typedef struct {
  float a, b, c;
} example_scales;

/* 1 for the matrices of types that have no scales. */
example_scales example_choose_scales(const example_type *type, float group_scale);

/* Tells the context its scales; max_k and max_n are the largest among its shapes. 0, or the code of the failed call. */
int example_set_scales(rknn_matmul_ctx ctx, const example_type *type, const rknn_matmul_io_attr *attr,
                       const example_scales *scales, int max_k, int max_n, int group_size);

/* Values for a matrix, each exactly representable in its element type; the same in every run. NULL without memory. */
float *example_random_matrix(const example_type *type, rknn_tensor_type element, size_t count, uint32_t seed);

/* Writes A, M x K row-major, in the layout that attr tells. */
void example_write_a(void *to, const float *a, const rknn_matmul_tensor_attr *attr, int m, int k);

/* Writes B, K x N row-major, in a layout of rknn_matmul_layout. 0, or -1 with a message. */
int example_write_b(void *to, const float *b, const rknn_matmul_tensor_attr *attr, rknn_matmul_info *info, int k,
                    int n);

/* Reads C, M x N row-major, from the layout that attr tells. NULL without memory. */
double *example_read_c(const void *from, const rknn_matmul_tensor_attr *attr, int m, int n);

/* Integer types must be exact, int8 within one (its rounding is not documented), floats of cosine >= 0.9999. */
int example_result_is_correct(const example_type *type, const example_scales *scales, const float *a, const float *b,
                              const double *c, int m, int k, int n);

/* "  name=A, dims=(4, 64), size=256, type=INT8" */
void example_print_attr(const rknn_matmul_tensor_attr *attr);
void example_print_io_attr(const rknn_matmul_io_attr *attr);

/* The values of a matrix in the order in which they stand in memory. */
void example_print_tensor(const char *name, const void *data, const rknn_matmul_tensor_attr *attr);

/* "INT8_MM_INT8_TO_INT32 matmul result is correct M x K x N is 4 x 64 x 32 AC_layout is 0 B_layout is 0" */
void example_print_verdict(const example_type *type, int correct, int m, int k, int n, int ac_layout, int b_layout);

/* Runs `loops` times, a line per run. Mean microseconds, or the negative code of a failed run. */
int64_t example_run(rknn_matmul_ctx ctx, int loops);

#ifdef __cplusplus
}
#endif
#endif
