/* Epilogues as steps of the loops on finished sums, and casts. */
#include "epilogue.h"

#include <math.h>
#include <stddef.h>
#include <string.h>

#include "finish.h"
#include "rows.h"

int64_t npumm_bytes_of(npumm_element type) {
  switch (type) {
    case NPUMM_FLOAT32:
    case NPUMM_INT32:
      return 4;
    case NPUMM_FLOAT16:
    case NPUMM_BFLOAT16:
      return 2;
    case NPUMM_INT8:
      return 1;
  }
  return 0;
}

static int matrix_is_valid(const npumm_matrix *matrix) {
  if (!matrix->data) return 1;
  const int64_t bytes = npumm_bytes_of(matrix->type);
  return bytes > 1 && matrix->type != NPUMM_INT32 && (uintptr_t)matrix->data % (uintptr_t)bytes == 0 &&
         matrix->row_stride % bytes == 0;
}

int npumm_epilogue_is_valid(const npumm_epilogue *epilogue) {
  return epilogue->function >= NPUMM_IDENTITY && epilogue->function <= NPUMM_SIGMOID &&
         matrix_is_valid(&epilogue->multiply) && matrix_is_valid(&epilogue->residual);
}

/* A piece of a row of a matrix as float32: where it stands, or widened into `block`. */
static const float *widened(const npumm_matrix *matrix, int64_t row, int64_t col, int64_t n, float *block) {
  const char *at = (const char *)matrix->data + row * matrix->row_stride + col * npumm_bytes_of(matrix->type);
  const void *piece = at;
  if (matrix->type == NPUMM_FLOAT16) {
    npumm_finish()->from_f16(piece, n, block);
  } else if (matrix->type == NPUMM_BFLOAT16) {
    npumm_finish()->from_bf16(piece, n, block);
  } else {
    return piece;
  }
  return block;
}

void npumm_function_apply(npumm_function function, const float *values, const float *factor, int64_t n, float *dst) {
  for (int64_t i = 0; i < n; i += NPUMM_BLOCK) {
    const npumm_steps steps = {
        .bias = npumm_no_summands,
        .factor = factor ? factor + i : npumm_no_factors,
        .summand = npumm_no_summands,
        .function = function,
        .low = -INFINITY,
        .high = INFINITY,
    };
    npumm_finish()->finish_float32(values + i, n - i < NPUMM_BLOCK ? n - i : NPUMM_BLOCK, &steps, dst + i);
  }
}

void npumm_epilogue_steps(const npumm_epilogue *epilogue, int64_t row, int64_t col, int64_t n, npumm_widened *room,
                          npumm_steps *steps) {
  const npumm_matrix *factor = &epilogue->multiply, *summand = &epilogue->residual;
  steps->function = epilogue->function;
  steps->low = epilogue->low;
  steps->high = epilogue->high;
  const int all = factor->data || summand->data || epilogue->function != NPUMM_IDENTITY;
  steps->bias = epilogue->bias ? epilogue->bias + col : all ? npumm_no_summands : NULL;
  if (!all) return;
  steps->factor = factor->data ? widened(factor, row, col, n, room->factor) : npumm_no_factors;
  steps->summand = summand->data ? widened(summand, row, col, n, room->summand) : npumm_no_summands;
}

void npumm_cast(const float *values, int64_t n, npumm_element type, void *dst) {
  if (type == NPUMM_FLOAT16) {
    npumm_rows()->f32_to_f16(values, dst, n, 1.0f);
  } else if (type == NPUMM_BFLOAT16) {
    npumm_finish()->to_bf16(values, n, dst);
  } else {
    memcpy(dst, values, (size_t)n * sizeof *values);
  }
}
