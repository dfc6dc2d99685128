/* Operators of ONNX Runtime whose nodes are computed by whoever called npumm_onnx_set_compute. */
#include <stdatomic.h>
#include <stdlib.h>

#include "npumatmul_onnx.h"
#include "runtime.h"

#define PUBLIC __attribute__((visibility("default")))
#define DOMAIN_NAME "npumatmul"
enum { MOST_TENSORS = 4, MOST_RANK = 64, MESSAGE = 1024 };

/* An operator: its description first, so that a pointer to that is one to all. */
typedef struct {
  ort_op base;
  const char *name;
  int inputs[MOST_TENSORS];  /* element types, up to 0 */
  int outputs[MOST_TENSORS]; /* the same */
  size_t needed_inputs;      /* the others may be left out */
  size_t needed_outputs;
} operator;

typedef struct {
  const ort_function *api;
  int64_t number;
} kernel;

typedef struct {
  const ort_function *api;
  void *context;
} call;

static _Atomic(npumm_onnx_compute) computing;

PUBLIC void npumm_onnx_set_compute(npumm_onnx_compute compute) { atomic_store(&computing, compute); }

static ort_status failed(const ort_function *api, const char *why) {
  ort_status (*create)(int, const char *) = (ort_status(*)(int, const char *))api[ORT_CREATE_STATUS];
  return create(ORT_FAIL, why);
}

static void forget(const ort_function *api, ort_status status) {
  if (status != NULL) { ((void (*)(ort_status))api[ORT_RELEASE_STATUS])(status); }
}

PUBLIC int npumm_onnx_output(void *handle, size_t index, const int64_t *dims, size_t rank, void **data) {
  const call *made = handle;
  void *value = NULL;
  ort_status (*output)(void *, size_t, const int64_t *, size_t, void **) =
      (ort_status(*)(void *, size_t, const int64_t *, size_t, void **))made->api[ORT_OUTPUT];
  ort_status (*mutable_data)(void *, void **) = (ort_status(*)(void *, void **))made->api[ORT_TENSOR_DATA];
  ort_status status = output(made->context, index, dims, rank, &value);
  if (status == NULL && value == NULL) { return 1; }
  if (status == NULL) { status = mutable_data(value, data); }
  forget(made->api, status);
  return status == NULL ? 0 : -1;
}

/* Describes an input; one that was left out has type 0. */
static ort_status describe(const ort_function *api, const void *value, int64_t *dims, npumm_onnx_tensor *into) {
  ort_status (*info_of)(const void *, void **) = (ort_status(*)(const void *, void **))api[ORT_TYPE_AND_SHAPE];
  ort_status (*type_of)(const void *, int *) = (ort_status(*)(const void *, int *))api[ORT_ELEMENT_TYPE];
  ort_status (*rank_of)(const void *, size_t *) = (ort_status(*)(const void *, size_t *))api[ORT_DIMENSIONS_COUNT];
  ort_status (*dims_of)(const void *, int64_t *, size_t) =
      (ort_status(*)(const void *, int64_t *, size_t))api[ORT_DIMENSIONS];
  ort_status (*data_of)(const void *, void **) = (ort_status(*)(const void *, void **))api[ORT_TENSOR_DATA];
  void *info = NULL;
  int type = 0;
  size_t rank = 0;
  *into = (npumm_onnx_tensor){.dims = dims};
  if (value == NULL) { return NULL; }
  ort_status status = info_of(value, &info);
  if (status != NULL) { return status; }
  status = type_of(info, &type);
  if (status == NULL) { status = rank_of(info, &rank); }
  if (status == NULL && rank > MOST_RANK) { status = failed(api, "npumatmul: a tensor has more than 64 dimensions"); }
  if (status == NULL) { status = dims_of(info, dims, rank); }
  if (status == NULL) { status = data_of(value, &into->data); }
  into->type = type;
  into->rank = (int32_t)rank;
  ((void (*)(void *))api[ORT_RELEASE_TYPE_AND_SHAPE])(info);
  return status;
}

static ort_status compute(void *handle, void *context) {
  const kernel *node = handle;
  const ort_function *api = node->api;
  npumm_onnx_compute ask = atomic_load(&computing);
  if (ask == NULL) {
    return failed(api, "npumatmul: nobody computes its operators in this process; use npumatmul.onnx.InferenceSession");
  }
  ort_status (*count)(const void *, size_t *) = (ort_status(*)(const void *, size_t *))api[ORT_INPUT_COUNT];
  ort_status (*out_count)(const void *, size_t *) = (ort_status(*)(const void *, size_t *))api[ORT_OUTPUT_COUNT];
  ort_status (*input)(const void *, size_t, const void **) =
      (ort_status(*)(const void *, size_t, const void **))api[ORT_INPUT];
  size_t inputs = 0;
  size_t outputs = 0;
  ort_status status = count(context, &inputs);
  if (status == NULL) { status = out_count(context, &outputs); }
  if (status == NULL && (inputs > MOST_TENSORS || outputs > MOST_TENSORS)) {
    status = failed(api, "npumatmul: a node has more tensors than its operator");
  }
  npumm_onnx_tensor given[MOST_TENSORS];
  int64_t dims[MOST_TENSORS][MOST_RANK];
  for (size_t i = 0; status == NULL && i < inputs; i++) {
    const void *value = NULL;
    status = input(context, i, &value);
    if (status == NULL) { status = describe(api, value, dims[i], &given[i]); }
  }
  if (status != NULL) { return status; }
  char message[MESSAGE] = "npumatmul: a node failed";
  call made = {api, context};
  if (ask(node->number, inputs, given, outputs, &made, message, sizeof message) != NPUMM_ONNX_DONE) {
    message[MESSAGE - 1] = 0;
    return failed(api, message);
  }
  return NULL;
}

static ort_status create(const ort_op *op, const ort_function *api, const void *info, void **made) {
  ort_status (*attribute)(const void *, const char *, int64_t *) =
      (ort_status(*)(const void *, const char *, int64_t *))api[ORT_ATTRIBUTE_INT64];
  (void)op;
  kernel *node = malloc(sizeof *node);
  if (node == NULL) { return failed(api, "npumatmul: out of memory"); }
  node->api = api;
  ort_status status = attribute(info, "number", &node->number);
  if (status != NULL) {
    free(node);
    return status;
  }
  *made = node;
  return NULL;
}

static size_t counted(const int *types) {
  size_t count = 0;
  while (count < MOST_TENSORS && types[count] != 0) { count++; }
  return count;
}

static const operator* of(const ort_op *op) { return (const operator*)op; }

static const char *name_of(const ort_op *op) { return of(op)->name; }
static const char *provider_of(const ort_op *op) {
  (void)op;
  return NULL; /* the CPU's */
}
static int input_type(const ort_op *op, size_t index) { return of(op)->inputs[index]; }
static int output_type(const ort_op *op, size_t index) { return of(op)->outputs[index]; }
static size_t input_count(const ort_op *op) { return counted(of(op)->inputs); }
static size_t output_count(const ort_op *op) { return counted(of(op)->outputs); }
static int input_needed(const ort_op *op, size_t index) {
  return index < of(op)->needed_inputs ? ORT_REQUIRED : ORT_OPTIONAL;
}
static int output_needed(const ort_op *op, size_t index) {
  return index < of(op)->needed_outputs ? ORT_REQUIRED : ORT_OPTIONAL;
}
static int input_memory(const ort_op *op, size_t index) {
  (void)op;
  (void)index;
  return 0;
}
static int never(const ort_op *op) {
  (void)op;
  return 0;
}

#define BASE                                                                                                           \
  {                                                                                                                    \
    .version = ORT_VERSION, .name = name_of, .provider = provider_of, .input_type = input_type,                        \
    .input_count = input_count, .output_type = output_type, .output_count = output_count, .destroy = free,             \
    .input_characteristic = input_needed, .output_characteristic = output_needed, .input_memory = input_memory,        \
    .least_inputs = never, .inputs_alike = never, .least_outputs = never, .outputs_alike = never, .create_v2 = create, \
    .compute_v2 = compute                                                                                              \
  }

static const operator operators[] = {
    {BASE, "Product", {ORT_FLOAT}, {ORT_FLOAT}, 1, 1},
    {BASE, "ProductHalf", {ORT_FLOAT16}, {ORT_FLOAT16}, 1, 1},
    {BASE, "SumsOfUint8", {ORT_UINT8, ORT_UINT8}, {ORT_INT32}, 1, 1},
    {BASE, "SumsOfInt8", {ORT_INT8, ORT_INT8}, {ORT_INT32}, 1, 1},
    {BASE, "RoundedOfUint8", {ORT_UINT8}, {ORT_UINT8}, 1, 1},
    {BASE, "RoundedOfInt8", {ORT_INT8}, {ORT_INT8}, 1, 1},
    {BASE, "FloatsOfUint8", {ORT_UINT8}, {ORT_FLOAT}, 1, 1},
    {BASE, "FloatsOfInt8", {ORT_INT8}, {ORT_FLOAT}, 1, 1},
    {BASE, "Recurrent", {ORT_FLOAT, ORT_FLOAT, ORT_FLOAT}, {ORT_FLOAT, ORT_FLOAT, ORT_FLOAT}, 1, 0},
};

/* What ONNX Runtime calls when the library is registered; the domain lives as long as the process, for its sessions. */
PUBLIC ort_status RegisterCustomOps(void *options, const ort_api_base *base);

PUBLIC ort_status RegisterCustomOps(void *options, const ort_api_base *base) {
  static _Atomic(void *) shared;
  const ort_function *api = base->get_api(ORT_VERSION);
  if (api == NULL) { /* older than 1.16: it has version 1 at least, by which it can be told */
    api = base->get_api(1);
    return api == NULL ? NULL : failed(api, "npumatmul: ONNX Runtime 1.16 or newer is needed");
  }
  ort_status (*create_domain)(const char *, void **) = (ort_status(*)(const char *, void **))api[ORT_CREATE_DOMAIN];
  ort_status (*add)(void *, const ort_op *) = (ort_status(*)(void *, const ort_op *))api[ORT_DOMAIN_ADD];
  ort_status (*use)(void *, void *) = (ort_status(*)(void *, void *))api[ORT_ADD_DOMAIN];
  void *domain = atomic_load(&shared);
  if (domain == NULL) {
    ort_status status = create_domain(DOMAIN_NAME, &domain);
    for (size_t i = 0; status == NULL && i < sizeof operators / sizeof *operators; i++) {
      status = add(domain, &operators[i].base);
    }
    if (status != NULL) { return status; }
    void *nothing = NULL;
    if (!atomic_compare_exchange_strong(&shared, &nothing, domain)) {
      domain = nothing; /* another thread was first; ours is not worth an entry for its release */
    }
  }
  return use(options, domain);
}
