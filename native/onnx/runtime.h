/*
 * What is needed of ONNX Runtime's C API, version 16: functions by their place in its table, which only ever grows at
 * its end, and the structure that describes an operator. Wheels of onnxruntime bring no headers.
 */
#ifndef NPUMM_ONNX_RUNTIME_H
#define NPUMM_ONNX_RUNTIME_H

#include <stddef.h>
#include <stdint.h>

#define ORT_VERSION 16

typedef void *ort_status; /* NULL: it went well */
typedef void (*ort_function)(void);

typedef struct {
  const ort_function *(*get_api)(uint32_t version);
  const char *(*get_version)(void);
} ort_api_base;

/* Places in the table of functions. */
enum {
  ORT_CREATE_STATUS = 0,
  ORT_CREATE_DOMAIN = 26,
  ORT_DOMAIN_ADD = 27,
  ORT_ADD_DOMAIN = 28,
  ORT_TENSOR_DATA = 51,
  ORT_ELEMENT_TYPE = 60,
  ORT_DIMENSIONS_COUNT = 61,
  ORT_DIMENSIONS = 62,
  ORT_TYPE_AND_SHAPE = 65,
  ORT_ATTRIBUTE_INT64 = 86,
  ORT_INPUT_COUNT = 88,
  ORT_OUTPUT_COUNT = 89,
  ORT_INPUT = 90,
  ORT_OUTPUT = 91,
  ORT_RELEASE_STATUS = 93,
  ORT_RELEASE_TYPE_AND_SHAPE = 99
};

/* Element types. */
enum { ORT_FLOAT = 1, ORT_UINT8 = 2, ORT_INT8 = 3, ORT_INT32 = 6, ORT_FLOAT16 = 10 };

/* Whether an input or output may be left out. */
enum { ORT_REQUIRED = 0, ORT_OPTIONAL = 1 };

enum { ORT_FAIL = 1 };

/* How an operator is described; fields in this order, those after `compute_v2` are not read for version 16. */
typedef struct ort_op ort_op;
struct ort_op {
  uint32_t version;
  void *(*create)(const ort_op *op, const ort_function *api, const void *info);
  const char *(*name)(const ort_op *op);
  const char *(*provider)(const ort_op *op);
  int (*input_type)(const ort_op *op, size_t index);
  size_t (*input_count)(const ort_op *op);
  int (*output_type)(const ort_op *op, size_t index);
  size_t (*output_count)(const ort_op *op);
  void (*compute)(void *kernel, void *context);
  void (*destroy)(void *kernel);
  int (*input_characteristic)(const ort_op *op, size_t index);
  int (*output_characteristic)(const ort_op *op, size_t index);
  int (*input_memory)(const ort_op *op, size_t index);
  int (*least_inputs)(const ort_op *op);
  int (*inputs_alike)(const ort_op *op);
  int (*least_outputs)(const ort_op *op);
  int (*outputs_alike)(const ort_op *op);
  ort_status (*create_v2)(const ort_op *op, const ort_function *api, const void *info, void **kernel);
  ort_status (*compute_v2)(void *kernel, void *context);
};

#endif
