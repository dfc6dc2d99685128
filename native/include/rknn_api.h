/*
 * The rest of librknnrt's C API beside matmul, under the name of the vendor's header and restated from public
 * documentation: programs that use matmul and models include and link both. The simulator has the functions for models,
 * so that such programs start, and refuses them: it simulates matmul only.
 */
#ifndef NPUMATMUL_RKNN_API_H
#define NPUMATMUL_RKNN_API_H

#include "rknn_abi.h"

#ifdef __cplusplus
extern "C" {
#endif

/* ---- flags of rknn_init ------------------------------------------------------------------------------------------ */
#define RKNN_FLAG_PRIOR_HIGH 0x00000000
#define RKNN_FLAG_PRIOR_MEDIUM 0x00000001
#define RKNN_FLAG_PRIOR_LOW 0x00000002
#define RKNN_FLAG_ASYNC_MASK 0x00000004
#define RKNN_FLAG_COLLECT_PERF_MASK 0x00000008
#define RKNN_FLAG_MEM_ALLOC_OUTSIDE 0x00000010
#define RKNN_FLAG_SHARE_WEIGHT_MEM 0x00000020
#define RKNN_FLAG_FENCE_IN_OUTSIDE 0x00000040
#define RKNN_FLAG_FENCE_OUT_OUTSIDE 0x00000080
#define RKNN_FLAG_COLLECT_MODEL_INFO_ONLY 0x00000100
#define RKNN_FLAG_INTERNAL_ALLOC_OUTSIDE 0x00000200
#define RKNN_FLAG_EXECUTE_FALLBACK_PRIOR_DEVICE_GPU 0x00000400
#define RKNN_FLAG_ENABLE_SRAM 0x00000800
#define RKNN_FLAG_SHARE_SRAM 0x00001000
#define RKNN_FLAG_DISABLE_PROC_HIGH_PRIORITY 0x00002000
#define RKNN_FLAG_DISABLE_FLUSH_INPUT_MEM_CACHE 0x00004000
#define RKNN_FLAG_DISABLE_FLUSH_OUTPUT_MEM_CACHE 0x00008000
#define RKNN_FLAG_MODEL_BUFFER_ZERO_COPY 0x00010000

/* ---- enumerations and structs: byte sizes are asserted in tests/test_rknn_abi.py ----------------------------------- */
typedef enum {
  RKNN_TENSOR_QNT_NONE = 0,
  RKNN_TENSOR_QNT_DFP = 1, /* dynamic fixed point */
  RKNN_TENSOR_QNT_AFFINE_ASYMMETRIC = 2,
  RKNN_TENSOR_QNT_MAX = 3
} rknn_tensor_qnt_type;

typedef enum {
  RKNN_TENSOR_NCHW = 0,
  RKNN_TENSOR_NHWC = 1,
  RKNN_TENSOR_NC1HWC2 = 2,
  RKNN_TENSOR_UNDEFINED = 3,
  RKNN_TENSOR_FORMAT_MAX = 4
} rknn_tensor_format;

typedef struct _rknn_tensor_attr {
  uint32_t index; /* which tensor; set before rknn_query */
  uint32_t n_dims;
  uint32_t dims[RKNN_MAX_DIMS];
  char name[RKNN_MAX_NAME_LEN];
  uint32_t n_elems;
  uint32_t size; /* bytes */
  rknn_tensor_format fmt;
  rknn_tensor_type type;
  rknn_tensor_qnt_type qnt_type;
  int8_t fl;  /* bits behind the point, of RKNN_TENSOR_QNT_DFP */
  int32_t zp; /* zero point and scale, of RKNN_TENSOR_QNT_AFFINE_ASYMMETRIC */
  float scale;
  uint32_t w_stride; /* 0: the width */
  uint32_t size_with_stride;
  uint8_t pass_through; /* 1: bytes go to the model as they are */
  uint32_t h_stride;    /* 0: the height */
} rknn_tensor_attr;

typedef struct _rknn_input_range {
  uint32_t index;
  uint32_t shape_number;
  rknn_tensor_format fmt;
  char name[RKNN_MAX_NAME_LEN];
  uint32_t dyn_range[RKNN_MAX_DYNAMIC_SHAPE_NUM][RKNN_MAX_DIMS];
  uint32_t n_dims;
} rknn_input_range;

typedef struct _rknn_custom_string {
  char string[1024];
} rknn_custom_string;

typedef struct _rknn_input {
  uint32_t index;
  void *buf;
  uint32_t size;
  uint8_t pass_through;
  rknn_tensor_type type;
  rknn_tensor_format fmt;
} rknn_input;

typedef struct _rknn_output {
  uint8_t want_float;
  uint8_t is_prealloc; /* 1: buf and size are the caller's */
  uint32_t index;
  void *buf;
  uint32_t size;
} rknn_output;

typedef struct _rknn_init_extend {
  rknn_context ctx;
  int32_t real_model_offset;
  uint32_t real_model_size;
  int32_t model_buffer_fd; /* this and the next are reserved before 2.1.0 */
  uint32_t model_buffer_flags;
  uint8_t reserved[112];
} rknn_init_extend;

typedef struct _rknn_run_extend {
  uint64_t frame_id;
  int32_t non_block;
  int32_t timeout_ms;
  int32_t fence_fd;
} rknn_run_extend;

typedef struct _rknn_output_extend {
  uint64_t frame_id;
} rknn_output_extend;

/* ---- functions for models; the simulator refuses them -------------------------------------------------------------- */
int rknn_init(rknn_context *context, void *model, uint32_t size, uint32_t flag, rknn_init_extend *extend);
int rknn_dup_context(rknn_context *context_in, rknn_context *context_out);
int rknn_destroy(rknn_context context);
int rknn_inputs_set(rknn_context context, uint32_t n_inputs, rknn_input inputs[]);
int rknn_set_batch_core_num(rknn_context context, int core_num);
int rknn_set_core_mask(rknn_context context, rknn_core_mask core_mask);
int rknn_run(rknn_context context, rknn_run_extend *extend);
int rknn_wait(rknn_context context, rknn_run_extend *extend);
int rknn_outputs_get(rknn_context context, uint32_t n_outputs, rknn_output outputs[], rknn_output_extend *extend);
int rknn_outputs_release(rknn_context context, uint32_t n_outputs, rknn_output outputs[]);
int rknn_set_weight_mem(rknn_context ctx, rknn_tensor_mem *mem);
int rknn_set_internal_mem(rknn_context ctx, rknn_tensor_mem *mem);
int rknn_set_io_mem(rknn_context ctx, rknn_tensor_mem *mem, rknn_tensor_attr *attr);
int rknn_set_input_shape(rknn_context ctx, rknn_tensor_attr *attr);
int rknn_set_input_shapes(rknn_context ctx, uint32_t n_inputs, rknn_tensor_attr attr[]);

/* ---- for printing -------------------------------------------------------------------------------------------------- */
static inline const char *get_type_string(rknn_tensor_type type) {
  static const char *const names[] = {"FP32",  "FP16",   "INT8",  "UINT8", "INT16", "UINT16",
                                      "INT32", "UINT32", "INT64", "BOOL",  "INT4",  "BF16"};
  return (unsigned)type < RKNN_TENSOR_TYPE_MAX ? names[(unsigned)type] : "UNKNOW";
}

static inline const char *get_qnt_type_string(rknn_tensor_qnt_type type) {
  static const char *const names[] = {"NONE", "DFP", "AFFINE"};
  return (unsigned)type < RKNN_TENSOR_QNT_MAX ? names[(unsigned)type] : "UNKNOW";
}

static inline const char *get_format_string(rknn_tensor_format format) {
  static const char *const names[] = {"NCHW", "NHWC", "NC1HWC2", "UNDEFINED"};
  return (unsigned)format < RKNN_TENSOR_FORMAT_MAX ? names[(unsigned)format] : "UNKNOW";
}

#ifdef __cplusplus
}
#endif
#endif
