/* Epilogues: bias, function, multiply, residual, limits and cast on a piece of a row that is in the cache anyway. */
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

void npumm_function_apply(npumm_function function, float *values, int64_t n) {
  const npumm_finish_kernels *kernels = npumm_finish();
  switch (function) {
    case NPUMM_IDENTITY:
      break;
    case NPUMM_RELU:
      kernels->relu(values, n);
      break;
    case NPUMM_GELU:
      kernels->gelu(values, n);
      break;
    case NPUMM_GELU_TANH:
      kernels->gelu_tanh(values, n);
      break;
    case NPUMM_SILU:
      kernels->silu(values, n);
      break;
    case NPUMM_RELU2:
      kernels->relu2(values, n);
      break;
    case NPUMM_SIGMOID:
      kernels->sigmoid(values, n);
      break;
  }
}

void npumm_epilogue_apply(const npumm_epilogue *epilogue, int64_t row, int64_t col, float *values, int64_t n) {
  const npumm_finish_kernels *kernels = npumm_finish();
  float block[NPUMM_BLOCK];
  if (epilogue->bias) kernels->add(values, epilogue->bias + col, n);
  npumm_function_apply(epilogue->function, values, n);
  if (epilogue->multiply.data) kernels->multiply(values, widened(&epilogue->multiply, row, col, n, block), n);
  if (epilogue->residual.data) kernels->add(values, widened(&epilogue->residual, row, col, n, block), n);
  if (epilogue->low > -INFINITY || epilogue->high < INFINITY) kernels->clip(values, n, epilogue->low, epilogue->high);
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
