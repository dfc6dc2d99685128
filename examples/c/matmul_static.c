/*
 * One matrix multiplication through rknn_matmul_api: create, quantize, fill, bind, run, check on the CPU.
 * Ends with 0 when the result is correct and with -1 when it is not, or when a call failed.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "matmul_example.h"

enum { GROUP_SIZE = 32 };

typedef struct {
  const example_type *type;
  rknn_matmul_info info;
  int loops, core_mask, print;
} request;

/* Everything that has to be given back, in this order. */
typedef struct {
  float *a, *b;
  double *c;
  rknn_tensor_mem *a_memory, *b_memory, *c_memory;
  rknn_matmul_ctx ctx;
} resources;

static void print_usage(const char *program) {
  fprintf(stderr,
          "usage: %s type M,K,N [B_layout] [AC_layout] [loop] [core_mask] [print] [iommu]\n"
          "  type       number of the rknn_matmul_type, e.g. 1 float16 to float32, 2 int8 to int32\n"
          "  B_layout   0 normal (default), 1 native, 2 transposed\n"
          "  AC_layout  0 normal (default), 1 native\n"
          "  loop       how many times to run (default 10)\n"
          "  core_mask  0 any core (default), 1 core 0, 2 core 1, 4 core 2\n"
          "  print      whether to print the tensors (default 1)\n"
          "  iommu      number of the IOMMU domain (default 0)\n",
          program);
}

/* 0 when the arguments make sense. */
static int parse(int argc, char **argv, request *wanted) {
  static const char *const names[] = {"B_layout", "AC_layout", "loop", "core_mask", "print", "iommu"};
  int options[] = {0, 0, 10, 0, 1, 0}, shape[3];
  const int count = argc - 3;
  if (count < 0 || count > 6) {
    print_usage(argv[0]);
    return -1;
  }
  wanted->type = example_find_type(example_parse_argument("type", argv[1]));
  if (!wanted->type) {
    fprintf(stderr, "%s is no matmul type\n", argv[1]);
    return -1;
  }
  if (example_parse_numbers(argv[2], shape, 3) != 3) {
    fprintf(stderr, "M,K,N must be three numbers, not '%s'\n", argv[2]);
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
  memset(&wanted->info, 0, sizeof wanted->info); /* its reserved bytes must be zero */
  wanted->info.M = shape[0];
  wanted->info.K = shape[1];
  wanted->info.N = shape[2];
  wanted->info.type = (rknn_matmul_type)wanted->type->number;
  wanted->info.B_layout = (int16_t)options[0];
  wanted->info.B_quant_type = (int16_t)wanted->type->b_quant_type;
  if (wanted->type->b_quant_type == RKNN_QUANT_TYPE_PER_GROUP_SYM) wanted->info.group_size = GROUP_SIZE;
  wanted->info.AC_layout = (int16_t)options[1];
  wanted->info.iommu_domain_id = options[5];
  wanted->loops = options[2];
  wanted->core_mask = options[3];
  wanted->print = options[4];
  return 0;
}

/* 0, or -1 with a message. */
static int bind(resources *held, rknn_tensor_mem *memory, rknn_matmul_tensor_attr *attr) {
  const int code = rknn_matmul_set_io_mem(held->ctx, memory, attr);
  if (code != RKNN_SUCC) fprintf(stderr, "rknn_matmul_set_io_mem of %s failed: %d\n", attr->name, code);
  return code == RKNN_SUCC ? 0 : -1;
}

static void *start_of(const rknn_tensor_mem *memory) { return (char *)memory->virt_addr + memory->offset; }

static int multiply(request *wanted, resources *held) {
  rknn_matmul_info *info = &wanted->info;
  rknn_matmul_io_attr attr;
  memset(&attr, 0, sizeof attr);
  const int code = rknn_matmul_create(&held->ctx, info, &attr);
  if (code != RKNN_SUCC) {
    held->ctx = 0;
    fprintf(stderr, "rknn_matmul_create failed: %d\n", code);
    return -1;
  }
  example_print_io_attr(&attr);
  /* Chips with a single core refuse every mask and run all the same. */
  (void)rknn_matmul_set_core_mask(held->ctx, (rknn_core_mask)wanted->core_mask);
  const example_scales scales = example_choose_scales(wanted->type, 0.0001f);
  if (example_set_scales(held->ctx, wanted->type, &attr, &scales, info->K, info->N, GROUP_SIZE) != RKNN_SUCC) return -1;

  /* The sizes are the runtime's to say: native layouts are padded. */
  held->a_memory = rknn_create_mem(held->ctx, attr.A.size);
  held->b_memory = rknn_create_mem(held->ctx, attr.B.size);
  held->c_memory = rknn_create_mem(held->ctx, attr.C.size);
  held->a = example_random_matrix(wanted->type, attr.A.type, (size_t)info->M * (size_t)info->K, 1);
  held->b = example_random_matrix(wanted->type, attr.B.type, (size_t)info->K * (size_t)info->N, 2);
  if (!held->a_memory || !held->b_memory || !held->c_memory || !held->a || !held->b) {
    fprintf(stderr, "no memory for the matrices\n");
    return -1;
  }
  memset(start_of(held->a_memory), 0, attr.A.size);
  memset(start_of(held->b_memory), 0, attr.B.size);
  example_write_a(start_of(held->a_memory), held->a, &attr.A, info->M, info->K);
  if (example_write_b(start_of(held->b_memory), held->b, &attr.B, info, info->K, info->N)) return -1;
  rknn_mem_sync(held->ctx, held->a_memory, RKNN_MEMORY_SYNC_TO_DEVICE);
  rknn_mem_sync(held->ctx, held->b_memory, RKNN_MEMORY_SYNC_TO_DEVICE);

  /* After the data is there, and again after every change of it. */
  if (bind(held, held->a_memory, &attr.A) || bind(held, held->b_memory, &attr.B)) return -1;
  if (bind(held, held->c_memory, &attr.C)) return -1;
  const int64_t average = example_run(held->ctx, wanted->loops);
  if (average < 0) return -1;
  printf("Average Time = %.2fms, Average FPS = %.2f\n", (double)average / 1000.0,
         average > 0 ? 1e6 / (double)average : 0.0);
  rknn_mem_sync(held->ctx, held->c_memory, RKNN_MEMORY_SYNC_FROM_DEVICE);

  if (wanted->print) {
    printf("matmul tensors:\n");
    example_print_tensor("A", start_of(held->a_memory), &attr.A);
    example_print_tensor("B", start_of(held->b_memory), &attr.B);
    example_print_tensor("C", start_of(held->c_memory), &attr.C);
  }
  held->c = example_read_c(start_of(held->c_memory), &attr.C, info->M, info->N);
  if (!held->c) return -1;
  const int correct =
      example_result_is_correct(wanted->type, &scales, held->a, held->b, held->c, info->M, info->K, info->N);
  example_print_verdict(wanted->type, correct, info->M, info->K, info->N, info->AC_layout, info->B_layout);
  return correct ? 0 : -1;
}

/* Memories before the context that they were made with. */
static void give_back(resources *held) {
  if (held->a_memory) rknn_destroy_mem(held->ctx, held->a_memory);
  if (held->b_memory) rknn_destroy_mem(held->ctx, held->b_memory);
  if (held->c_memory) rknn_destroy_mem(held->ctx, held->c_memory);
  if (held->ctx) rknn_matmul_destroy(held->ctx);
  free(held->a);
  free(held->b);
  free(held->c);
}

int main(int argc, char **argv) {
  request wanted;
  resources held;
  memset(&held, 0, sizeof held);
  if (parse(argc, argv, &wanted)) return -1;
  printf(
      "MatMul matmul_type = %s, M = %d, K = %d, N = %d, B_layout = %d, AC_layout = %d, loop_count = %d, "
      "core_mask = %d, iommu_domain_id = %d\n",
      wanted.type->name, wanted.info.M, wanted.info.K, wanted.info.N, wanted.info.B_layout, wanted.info.AC_layout,
      wanted.loops, wanted.core_mask, wanted.info.iommu_domain_id);
  const int result = multiply(&wanted, &held);
  give_back(&held);
  return result;
}
