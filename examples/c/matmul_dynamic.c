/*
 * Several shapes through one context of rknn_matmul_api: create for all, then per shape select, fill, bind, run, check
 * on the CPU. Ends with 0 when every result is correct, else with -1.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "matmul_example.h"

enum { GROUP_SIZE = 32, SHAPES_MAX = 64 };

typedef struct {
  example_type type;
  rknn_matmul_info info;
  rknn_matmul_shape shapes[SHAPES_MAX];
  int shape_count, loops, core_mask, print;
  int max_k, max_n;
} request;

/* Everything that has to be given back, in this order. */
typedef struct {
  rknn_matmul_io_attr *attrs;
  rknn_tensor_mem *a_memory, *b_memory, *c_memory;
  rknn_matmul_ctx ctx;
} resources;

static void print_usage(const char *program) {
  fprintf(stderr,
          "usage: %s type M1,K1,N1#M2,K2,N2#... [B_layout] [AC_layout] [loop] [core_mask] [print]\n"
          "  type       number of the rknn_matmul_type, e.g. 1 float16 to float32, 2 int8 to int32\n"
          "  B_layout   0 normal (default), 1 native, 2 transposed; only with 2 may K and N differ\n"
          "  AC_layout  0 normal (default), 1 native\n"
          "  loop       how many times to run each shape (default 10)\n"
          "  core_mask  0 any core (default), 1 core 0, 2 core 1, 4 core 2\n"
          "  print      whether to print the tensors (default 1)\n",
          program);
}

/* 0, or -1 with a message. */
static int parse_shapes(const char *text, request *wanted) {
  char *copy = (char *)malloc(strlen(text) + 1);
  if (!copy) return -1;
  strcpy(copy, text);
  int result = 0;
  for (char *part = copy, *next; part && result == 0; part = next) {
    next = strchr(part, '#');
    if (next) *next++ = '\0';
    int shape[3];
    if (wanted->shape_count == SHAPES_MAX || example_parse_numbers(part, shape, 3) != 3) {
      fprintf(stderr, "the shapes must be up to %d times M,K,N between '#', not '%s'\n", SHAPES_MAX, text);
      result = -1;
      break;
    }
    rknn_matmul_shape *to = &wanted->shapes[wanted->shape_count++];
    to->M = shape[0];
    to->K = shape[1];
    to->N = shape[2];
    if (to->K > wanted->max_k) wanted->max_k = to->K;
    if (to->N > wanted->max_n) wanted->max_n = to->N;
    if (wanted->info.B_layout != RKNN_MM_LAYOUT_TP_NORM &&
        (to->K != wanted->shapes[0].K || to->N != wanted->shapes[0].N)) {
      fprintf(stderr, "K and N may differ with B_layout 2 only\n");
      result = -1;
    }
  }
  free(copy);
  return result;
}

/* 0 when the arguments make sense. */
static int parse(int argc, char **argv, request *wanted) {
  static const char *const names[] = {"B_layout", "AC_layout", "loop", "core_mask", "print"};
  int options[] = {0, 0, 10, 0, 1};
  const int count = argc - 3;
  if (count < 0 || count > 5) {
    print_usage(argv[0]);
    return -1;
  }
  const example_type *type = example_find_type(example_parse_argument("type", argv[1]));
  if (!type) {
    fprintf(stderr, "%s is no matmul type\n", argv[1]);
    return -1;
  }
  for (int i = 0; i < count; i++) {
    options[i] = example_parse_argument(names[i], argv[3 + i]);
    if (options[i] < 0) return -1;
  }
  if (options[0] > 2 || options[1] > 1 || options[2] < 1) {
    print_usage(argv[0]);
    return -1;
  }
  wanted->type = *type;
  if (type->number == RKNN_FLOAT16_MM_INT4_TO_FLOAT32) wanted->type.b_quant_type = RKNN_QUANT_TYPE_PER_GROUP_SYM;
  /* M, K and N are in the shapes; those of info are not looked at. */
  wanted->info.type = (rknn_matmul_type)type->number;
  wanted->info.B_layout = (int16_t)options[0];
  wanted->info.B_quant_type = (int16_t)wanted->type.b_quant_type;
  if (wanted->type.b_quant_type == RKNN_QUANT_TYPE_PER_GROUP_SYM) wanted->info.group_size = GROUP_SIZE;
  wanted->info.AC_layout = (int16_t)options[1];
  wanted->loops = options[2];
  wanted->core_mask = options[3];
  wanted->print = options[4];
  return parse_shapes(argv[2], wanted);
}

/* 0, or -1 with a message. */
static int bind(resources *held, rknn_tensor_mem *memory, rknn_matmul_tensor_attr *attr) {
  const int code = rknn_matmul_set_io_mem(held->ctx, memory, attr);
  if (code != RKNN_SUCC) fprintf(stderr, "rknn_matmul_set_io_mem of %s failed: %d\n", attr->name, code);
  return code == RKNN_SUCC ? 0 : -1;
}

static void *start_of(const rknn_tensor_mem *memory) { return (char *)memory->virt_addr + memory->offset; }

static uint32_t larger(uint32_t one, uint32_t other) { return one > other ? one : other; }

static int create(request *wanted, resources *held, const example_scales *scales) {
  held->attrs = (rknn_matmul_io_attr *)calloc((size_t)wanted->shape_count, sizeof *held->attrs);
  if (!held->attrs) return -1;
  const int code =
      rknn_matmul_create_dynamic_shape(&held->ctx, &wanted->info, wanted->shape_count, wanted->shapes, held->attrs);
  if (code != RKNN_SUCC) {
    held->ctx = 0;
    fprintf(stderr, "rknn_matmul_create_dynamic_shape failed: %d\n", code);
    return -1;
  }
  uint32_t a_size = 0, b_size = 0, c_size = 0;
  for (int i = 0; i < wanted->shape_count; i++) {
    printf("----------------------------------------\n");
    example_print_io_attr(&held->attrs[i]);
    a_size = larger(a_size, held->attrs[i].A.size);
    b_size = larger(b_size, held->attrs[i].B.size);
    c_size = larger(c_size, held->attrs[i].C.size);
  }
  printf("----------------------------------------\n");
  /* Chips with a single core refuse every mask and run all the same. */
  (void)rknn_matmul_set_core_mask(held->ctx, (rknn_core_mask)wanted->core_mask);
  if (example_set_scales(held->ctx, &wanted->type, &held->attrs[0], scales, wanted->max_k, wanted->max_n, GROUP_SIZE) !=
      RKNN_SUCC) {
    return -1;
  }
  held->a_memory = rknn_create_mem(held->ctx, a_size);
  held->b_memory = rknn_create_mem(held->ctx, b_size);
  held->c_memory = rknn_create_mem(held->ctx, c_size);
  if (held->a_memory && held->b_memory && held->c_memory) return 0;
  fprintf(stderr, "no memory for the matrices\n");
  return -1;
}

static int multiply(request *wanted, resources *held, const example_scales *scales, int index, const float *a,
                    const float *b) {
  rknn_matmul_shape *shape = &wanted->shapes[index];
  rknn_matmul_io_attr *attr = &held->attrs[index];
  const int code = rknn_matmul_set_dynamic_shape(held->ctx, shape);
  if (code != RKNN_SUCC) {
    fprintf(stderr, "rknn_matmul_set_dynamic_shape failed: %d\n", code);
    return -1;
  }
  printf("current shape: M = %d, K = %d, N = %d\n", shape->M, shape->K, shape->N);
  example_print_io_attr(attr);
  memset(start_of(held->a_memory), 0, attr->A.size);
  memset(start_of(held->b_memory), 0, attr->B.size);
  example_write_a(start_of(held->a_memory), a, &attr->A, shape->M, shape->K);
  if (example_write_b(start_of(held->b_memory), b, &attr->B, &wanted->info, shape->K, shape->N)) return -1;
  rknn_mem_sync(held->ctx, held->a_memory, RKNN_MEMORY_SYNC_TO_DEVICE);
  rknn_mem_sync(held->ctx, held->b_memory, RKNN_MEMORY_SYNC_TO_DEVICE);

  /* After the choice of the shape, with the attributes of that shape. */
  if (bind(held, held->a_memory, &attr->A) || bind(held, held->b_memory, &attr->B)) return -1;
  if (bind(held, held->c_memory, &attr->C)) return -1;
  if (example_run(held->ctx, wanted->loops) < 0) return -1;
  rknn_mem_sync(held->ctx, held->c_memory, RKNN_MEMORY_SYNC_FROM_DEVICE);
  if (wanted->print) {
    printf("matmul tensors:\n");
    example_print_tensor("A", start_of(held->a_memory), &attr->A);
    example_print_tensor("B", start_of(held->b_memory), &attr->B);
    example_print_tensor("C", start_of(held->c_memory), &attr->C);
  }
  double *c = example_read_c(start_of(held->c_memory), &attr->C, shape->M, shape->N);
  const int correct = c && example_result_is_correct(&wanted->type, scales, a, b, c, shape->M, shape->K, shape->N);
  free(c);
  example_print_verdict(&wanted->type, correct, shape->M, shape->K, shape->N, wanted->info.AC_layout,
                        wanted->info.B_layout);
  return correct ? 0 : -1;
}

static int multiply_all(request *wanted, resources *held, const example_scales *scales) {
  int result = 0;
  for (int i = 0; i < wanted->shape_count && result == 0; i++) {
    const rknn_matmul_shape *shape = &wanted->shapes[i];
    const size_t m = (size_t)shape->M, k = (size_t)shape->K, n = (size_t)shape->N;
    float *a = example_random_matrix(&wanted->type, wanted->type.a, m * k, 1u + (uint32_t)i);
    float *b = example_random_matrix(&wanted->type, wanted->type.b, k * n, 1000u);
    result = a && b ? multiply(wanted, held, scales, i, a, b) : -1;
    free(a);
    free(b);
  }
  return result;
}

/* Memories before the context that they were made with. */
static void give_back(resources *held) {
  if (held->a_memory) rknn_destroy_mem(held->ctx, held->a_memory);
  if (held->b_memory) rknn_destroy_mem(held->ctx, held->b_memory);
  if (held->c_memory) rknn_destroy_mem(held->ctx, held->c_memory);
  if (held->ctx) rknn_matmul_destroy(held->ctx);
  free(held->attrs);
}

int main(int argc, char **argv) {
  static request wanted; /* zeroed, as the reserved bytes of info must be */
  resources held;
  memset(&held, 0, sizeof held);
  if (parse(argc, argv, &wanted)) return -1;
  printf("MatMul matmul_type = %s, MKNs = %s, B_layout = %d, AC_layout = %d, loop_count = %d, core_mask = %d\n",
         wanted.type.name, argv[2], wanted.info.B_layout, wanted.info.AC_layout, wanted.loops, wanted.core_mask);
  const example_scales scales = example_choose_scales(&wanted.type, 0.1f);
  int result = create(&wanted, &held, &scales);
  if (result == 0) result = multiply_all(&wanted, &held, &scales);
  give_back(&held);
  return result;
}
