/*
 * The operators for ONNX Runtime, asked by a table of functions that is none of ONNX Runtime's: whatever
 * fails there, memory among it, is passed on once, nothing is left behind, and tensors may have any rank.
 *   gcc -std=c17 -O2 -Wall -Wextra -Werror -Iinclude -Wl,--wrap=malloc -o test_onnx_bridge tests/test_onnx_bridge.c \
 *     onnx/bridge.c
 */
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "../onnx/runtime.h"
#include "count.h"
#include "npumatmul_onnx.h"

ort_status RegisterCustomOps(void *options, const ort_api_base *base);

enum { TENSORS = 8, RANK = 80 };

typedef struct {
  int type;
  size_t rank;
  int64_t dims[RANK];
  float data[4];
} tensor;

/* A node that is being run: what it has, and the place of the function that fails, or -1. */
typedef struct {
  size_t inputs, outputs;
  const tensor *input[TENSORS];
  tensor output[TENSORS];
  bool is_left_out;
  int failing;
} run;

/* The linker has every malloc of the program go here; it fails while it is told to. */
static bool is_out_of_memory;
void *__real_malloc(size_t size);
void *__wrap_malloc(size_t size);
void *__wrap_malloc(size_t size) { return is_out_of_memory ? NULL : __real_malloc(size); }

static run *now;
static char last_text[2048];
static int statuses, infos, domains, uses;
static const ort_op *added[16];
static size_t added_count;
static uint32_t newest = 99;
static ort_function table[128];

static ort_status create_status(int code, const char *text) {
  (void)code;
  snprintf(last_text, sizeof last_text, "%s", text);
  statuses++;
  return last_text;
}
static void release_status(ort_status status) { statuses -= status != NULL; }

/* A status where the function of a place is to fail. */
static ort_status at(int place) {
  if (now == NULL || now->failing != place) return NULL;
  char text[32];
  snprintf(text, sizeof text, "place %d", place);
  return create_status(ORT_FAIL, text);
}

static ort_status create_domain(const char *name, void **made) {
  static int domain;
  CHECK(strcmp(name, "npumatmul") == 0, "the domain is %s", name);
  ort_status status = at(ORT_CREATE_DOMAIN);
  if (status == NULL) {
    domains++;
    *made = &domain;
  }
  return status;
}
static ort_status domain_add(void *domain, const ort_op *op) {
  ort_status status = at(ORT_DOMAIN_ADD);
  HOLDS(domain != NULL);
  if (status == NULL) added[added_count++ % 16] = op;
  return status;
}
static ort_status add_domain(void *options, void *domain) {
  HOLDS(options != NULL && domain != NULL);
  ort_status status = at(ORT_ADD_DOMAIN);
  uses += status == NULL;
  return status;
}
static ort_status tensor_data(void *value, void **data) {
  ort_status status = at(ORT_TENSOR_DATA);
  if (status == NULL) *data = ((tensor *)value)->data;
  return status;
}
static ort_status element_type(const void *info, int *type) {
  ort_status status = at(ORT_ELEMENT_TYPE);
  if (status == NULL) *type = ((const tensor *)info)->type;
  return status;
}
static ort_status dimensions_count(const void *info, size_t *rank) {
  ort_status status = at(ORT_DIMENSIONS_COUNT);
  if (status == NULL) *rank = ((const tensor *)info)->rank;
  return status;
}
static ort_status dimensions(const void *info, int64_t *dims, size_t rank) {
  ort_status status = at(ORT_DIMENSIONS);
  if (status == NULL) memcpy(dims, ((const tensor *)info)->dims, rank * sizeof *dims);
  return status;
}
static ort_status type_and_shape(const void *value, void **info) {
  ort_status status = at(ORT_TYPE_AND_SHAPE);
  if (status == NULL) {
    infos++;
    *info = malloc(sizeof(tensor)); /* of its own, so that a leak or a second release is seen */
    if (*info == NULL) abort();
    memcpy(*info, value, sizeof(tensor));
  }
  return status;
}
static void release_type_and_shape(void *info) {
  infos--;
  free(info);
}
static ort_status attribute(const void *info, const char *name, int64_t *value) {
  CHECK(strcmp(name, "number") == 0, "the attribute is %s", name);
  ort_status status = at(ORT_ATTRIBUTE_INT64);
  if (status == NULL) *value = *(const int64_t *)info;
  return status;
}
static ort_status input_count(const void *context, size_t *count) {
  ort_status status = at(ORT_INPUT_COUNT);
  if (status == NULL) *count = ((const run *)context)->inputs;
  return status;
}
static ort_status output_count(const void *context, size_t *count) {
  ort_status status = at(ORT_OUTPUT_COUNT);
  if (status == NULL) *count = ((const run *)context)->outputs;
  return status;
}
static ort_status input_of(const void *context, size_t index, const void **value) {
  ort_status status = at(ORT_INPUT);
  if (status == NULL) *value = ((const run *)context)->input[index];
  return status;
}
static ort_status output_of(void *context, size_t index, const int64_t *dims, size_t rank, void **value) {
  run *each = context;
  ort_status status = at(ORT_OUTPUT);
  if (status != NULL || each->is_left_out) return status;
  each->output[index].rank = rank;
  memcpy(each->output[index].dims, dims, rank * sizeof *dims);
  *value = &each->output[index];
  return NULL;
}

static void fill_table(void) {
  table[ORT_CREATE_STATUS] = (ort_function)create_status;
  table[ORT_CREATE_DOMAIN] = (ort_function)create_domain;
  table[ORT_DOMAIN_ADD] = (ort_function)domain_add;
  table[ORT_ADD_DOMAIN] = (ort_function)add_domain;
  table[ORT_TENSOR_DATA] = (ort_function)tensor_data;
  table[ORT_ELEMENT_TYPE] = (ort_function)element_type;
  table[ORT_DIMENSIONS_COUNT] = (ort_function)dimensions_count;
  table[ORT_DIMENSIONS] = (ort_function)dimensions;
  table[ORT_TYPE_AND_SHAPE] = (ort_function)type_and_shape;
  table[ORT_ATTRIBUTE_INT64] = (ort_function)attribute;
  table[ORT_INPUT_COUNT] = (ort_function)input_count;
  table[ORT_OUTPUT_COUNT] = (ort_function)output_count;
  table[ORT_INPUT] = (ort_function)input_of;
  table[ORT_OUTPUT] = (ort_function)output_of;
  table[ORT_RELEASE_STATUS] = (ort_function)release_status;
  table[ORT_RELEASE_TYPE_AND_SHAPE] = (ort_function)release_type_and_shape;
}

static const ort_function *get_api(uint32_t version) { return version <= newest ? table : NULL; }
static const char *get_version(void) { return "0"; }
static const ort_api_base base = {get_api, get_version};

/* Whether a status is a failure with a text in it; it is released. */
static bool failed_with(ort_status status, const char *text) {
  bool is_so = status != NULL && strstr(last_text, text) != NULL;
  if (!is_so) printf("the status is %s\n", status == NULL ? "none" : last_text);
  release_status(status);
  return is_so;
}

/* ---- who computes: it checks what it is given, and makes an output of that shape --------------------------------- */

static int answer = NPUMM_ONNX_DONE;
static bool is_silent;

static int computed(int64_t number, size_t inputs, const npumm_onnx_tensor *input, size_t outputs, void *call,
                    char *message, size_t room) {
  HOLDS(number == 42);
  CHECK(room >= 256, "there is room for %zu bytes", room);
  for (size_t i = 0; i < inputs; i++) {
    HOLDS(input[i].type == 0 || (input[i].rank >= 0 && input[i].dims != NULL && input[i].data != NULL));
  }
  for (size_t i = 0; i < outputs && answer == NPUMM_ONNX_DONE; i++) {
    void *data = NULL;
    int code = npumm_onnx_output(call, i, input[0].dims, (size_t)input[0].rank, &data);
    int wanted = now->failing == ORT_OUTPUT ? -1 : now->is_left_out;
    CHECK(code == wanted, "an output is %d, not %d", code, wanted);
    if (code == 0) ((float *)data)[0] = 1 + (float)i;
  }
  if (answer != NPUMM_ONNX_DONE && !is_silent) memset(message, 'x', room); /* with no 0 at its end */
  return answer;
}

static ort_status ran(const ort_op *op, run *each, void **kernel) {
  int64_t number = 42;
  now = each;
  ort_status status = op->create_v2(op, table, &number, kernel);
  if (status == NULL) status = op->compute_v2(*kernel, each);
  return status;
}

/* Runs a node and releases its kernel. */
static ort_status run_once(run *each) {
  void *kernel = NULL;
  ort_status status = ran(added[0], each, &kernel);
  added[0]->destroy(kernel);
  now = NULL;
  return status;
}

static tensor of_rank(size_t rank) {
  tensor made = {.type = ORT_FLOAT, .rank = rank};
  for (size_t i = 0; i < rank; i++) made.dims[i] = (int64_t)i + 1;
  return made;
}

static void check_registering(void) {
  int options = 0;
  run node = {.failing = -1};
  newest = 0;
  HOLDS(RegisterCustomOps(&options, &base) == NULL); /* no version by which it could even be told */
  newest = 15;
  HOLDS(failed_with(RegisterCustomOps(&options, &base), "1.16 or newer"));
  newest = 99;
  now = &node;
  for (int i = 0; i < 3; i++) {
    const int places[] = {ORT_CREATE_DOMAIN, ORT_DOMAIN_ADD, ORT_ADD_DOMAIN};
    char text[32];
    snprintf(text, sizeof text, "place %d", places[i]);
    node.failing = places[i];
    HOLDS(failed_with(RegisterCustomOps(&options, &base), text));
    HOLDS(uses == 0);
  }
  node.failing = -1;
  int made = domains;
  HOLDS(RegisterCustomOps(&options, &base) == NULL);
  HOLDS(RegisterCustomOps(&options, &base) == NULL);
  CHECK(domains == made && uses == 2, "%d domains, %d uses", domains - made, uses);
  now = NULL;
  for (size_t i = 0; i < added_count; i++) {
    const ort_op *op = added[i];
    HOLDS(op->version == ORT_VERSION && op->provider(op) == NULL && op->name(op) != NULL);
    HOLDS(op->input_count(op) >= 1 && op->input_count(op) <= 4 && op->output_count(op) >= 1);
    for (size_t j = 0; j < op->input_count(op); j++) {
      HOLDS(op->input_type(op, j) > 0 && op->input_memory(op, j) == 0);
      HOLDS(op->input_characteristic(op, j) == (j == 0 ? ORT_REQUIRED : ORT_OPTIONAL));
    }
    for (size_t j = 0; j < op->output_count(op); j++) HOLDS(op->output_type(op, j) > 0);
    HOLDS(op->least_inputs(op) == 0 && op->inputs_alike(op) == 0);
    HOLDS(op->least_outputs(op) == 0 && op->outputs_alike(op) == 0);
  }
}

static void check_running(void) {
  tensor x = of_rank(3), most = of_rank(64), scalar = of_rank(0), too_many = of_rank(65);
  run node = {.inputs = 2, .outputs = 2, .input = {&x}, .failing = -1};
  npumm_onnx_set_compute(NULL);
  HOLDS(failed_with(run_once(&node), "nobody computes"));
  npumm_onnx_set_compute(computed);
  HOLDS(run_once(&node) == NULL);
  HOLDS(node.output[1].data[0] == 2 && node.output[1].rank == 3 && node.output[1].dims[2] == 3);
  node.is_left_out = true;
  HOLDS(run_once(&node) == NULL);
  node.is_left_out = false;
  node.input[0] = &most;
  HOLDS(run_once(&node) == NULL && node.output[0].dims[63] == 64);
  node.input[0] = &scalar;
  HOLDS(run_once(&node) == NULL && node.output[0].rank == 0);
  node.input[0] = &too_many;
  HOLDS(failed_with(run_once(&node), "more than 64 dimensions"));
  node.input[0] = &x;
  node.inputs = 5;
  HOLDS(failed_with(run_once(&node), "more tensors than its operator"));
  node.inputs = 2;
  node.outputs = 5;
  HOLDS(failed_with(run_once(&node), "more tensors than its operator"));
  node.outputs = 1;
  for (answer = -1; answer <= 1; answer++) { /* 0 is what a callback returns that failed on its way */
    is_silent = true;
    HOLDS(failed_with(run_once(&node), "a node failed"));
    is_silent = false;
    HOLDS(failed_with(run_once(&node), "xxx"));
    CHECK(strlen(last_text) == 1023, "the text has %zu bytes", strlen(last_text));
  }
  answer = NPUMM_ONNX_DONE;
}

static void check_failures(void) {
  const int places[] = {ORT_ATTRIBUTE_INT64, ORT_INPUT_COUNT, ORT_OUTPUT_COUNT,     ORT_INPUT,      ORT_TYPE_AND_SHAPE,
                        ORT_ELEMENT_TYPE,    ORT_TENSOR_DATA, ORT_DIMENSIONS_COUNT, ORT_DIMENSIONS, ORT_OUTPUT};
  tensor x = of_rank(3);
  for (size_t i = 0; i < sizeof places / sizeof *places; i++) {
    run node = {.inputs = 1, .outputs = 1, .input = {&x}, .failing = places[i]};
    char text[32];
    snprintf(text, sizeof text, "place %d", places[i]);
    ort_status status = run_once(&node);
    HOLDS(places[i] == ORT_OUTPUT ? status == NULL : failed_with(status, text));
    CHECK(infos == 0 && statuses == 0, "place %d leaves %d infos and %d statuses", places[i], infos, statuses);
  }
}

static void check_no_memory(void) {
  int64_t number = 42;
  int untouched = 0;
  void *kernel = &untouched;
  is_out_of_memory = true;
  ort_status status = added[0]->create_v2(added[0], table, &number, &kernel);
  is_out_of_memory = false;
  HOLDS(failed_with(status, "out of memory"));
  HOLDS(kernel == &untouched); /* ONNX Runtime destroys nothing that was not made */
  tensor x = of_rank(3);
  run node = {.inputs = 1, .outputs = 1, .input = {&x}, .failing = -1};
  HOLDS(run_once(&node) == NULL); /* it is as it was */
}

int main(void) {
  fill_table();
  check_registering();
  check_running();
  check_failures();
  check_no_memory();
  CHECK(infos == 0 && statuses == 0, "%d infos and %d statuses are left", infos, statuses);
  return report("test_onnx_bridge");
}
