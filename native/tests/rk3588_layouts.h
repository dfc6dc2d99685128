/*
 * Layouts of rk3588 for the simulator's tests, written down anew (facts 4.2, 4.3), and products that are checked by
 * them.
 */
#ifndef RK3588_LAYOUTS_H
#define RK3588_LAYOUTS_H

#include "check.h"

/* Elements per group or tile on rk3588 (facts 4.2). */
typedef struct {
  rknn_matmul_type type;
  int a_bits, c_bytes;
  size_t a_group, tile_n, tile_k, c_group;
} layout;

static const layout layouts[] = {
    {RKNN_FLOAT16_MM_FLOAT16_TO_FLOAT32, 16, 4, 8, 16, 32, 4},
    {RKNN_INT8_MM_INT8_TO_INT32, 8, 4, 16, 32, 32, 4},
    {RKNN_INT4_MM_INT4_TO_INT16, 4, 2, 32, 64, 32, 8},
};

static inline size_t a_index(const rknn_matmul_info *info, const layout *l, size_t m, size_t k) {
  if (info->AC_layout == RKNN_MM_LAYOUT_NORM) return m * (size_t)info->K + k;
  return (k / l->a_group * (size_t)info->M + m) * l->a_group + k % l->a_group;
}

static inline size_t c_index(const rknn_matmul_info *info, const layout *l, size_t m, size_t n) {
  if (info->AC_layout == RKNN_MM_LAYOUT_NORM) return m * (size_t)info->N + n;
  return (n / l->c_group * (size_t)info->M + m) * l->c_group + n % l->c_group;
}

static inline size_t b_native_index(size_t K, size_t N, const layout *l, size_t k, size_t n) {
  size_t base = k / 8192 * 8192;
  size_t depth = K - base < 8192 ? K - base : 8192;
  size_t in_segment = k - base;
  size_t tile = n / l->tile_n * (depth / l->tile_k) + in_segment / l->tile_k;
  return base * N + (tile * l->tile_n + n % l->tile_n) * l->tile_k + in_segment % l->tile_k;
}

static inline size_t b_index(const rknn_matmul_info *info, const layout *l, size_t k, size_t n) {
  if (info->B_layout == RKNN_MM_LAYOUT_NORM) return k * (size_t)info->N + n;
  if (info->B_layout == RKNN_MM_LAYOUT_TP_NORM) return n * (size_t)info->K + k;
  return b_native_index((size_t)info->K, (size_t)info->N, l, k, n);
}

static inline void put(uint8_t *buffer, int bits, size_t index, int value) {
  if (bits == 16) {
    uint16_t half = exact_half(value);
    memcpy(buffer + 2 * index, &half, 2);
  } else if (bits == 8) {
    buffer[index] = (uint8_t)value;
  } else if (index % 2 == 0) {
    buffer[index / 2] = (uint8_t)((buffer[index / 2] & 0xf0) | (value & 15));
  } else {
    buffer[index / 2] = (uint8_t)((buffer[index / 2] & 0x0f) | (value & 15) << 4);
  }
}

/* C as a number; for halves in units of 1/64, the square of exact_half's. */
static inline double get_c(const uint8_t *buffer, const layout *l, size_t index) {
  if (l->c_bytes == 2) {
    int16_t narrow;
    memcpy(&narrow, buffer + 2 * index, 2);
    return narrow;
  }
  if (l->a_bits == 16) {
    float value;
    memcpy(&value, buffer + 4 * index, 4);
    return (double)value * 64;
  }
  int32_t wide;
  memcpy(&wide, buffer + 4 * index, 4);
  return wide;
}

/* Fills A and B with random numbers of at most limit, runs, and compares with a triple loop. Returns wrong elements. */
static inline size_t wrong_products(matmul *mm, const layout *l, int limit) {
  size_t M = (size_t)mm->info.M, K = (size_t)mm->info.K, N = (size_t)mm->info.N, wrong = 0;
  int *a = need(M * K * sizeof *a), *b = need(N * K * sizeof *b); /* b as [N, K] */
  for (size_t m = 0; m < M; m++) {
    for (size_t k = 0; k < K; k++) {
      a[m * K + k] = random_between(-limit, limit);
      put(data_of(mm->a), l->a_bits, a_index(&mm->info, l, m, k), a[m * K + k]);
    }
  }
  for (size_t n = 0; n < N; n++) {
    for (size_t k = 0; k < K; k++) {
      b[n * K + k] = random_between(-limit, limit);
      put(data_of(mm->b), l->a_bits, b_index(&mm->info, l, k, n), b[n * K + k]);
    }
  }
  memset(data_of(mm->c), 0xee, mm->io.C.size);
  bind_all(mm);
  CHECK_IS(rknn_matmul_run(mm->ctx), 0);
  for (size_t m = 0; m < M; m++) {
    for (size_t n = 0; n < N; n++) {
      int64_t sum = 0;
      for (size_t k = 0; k < K; k++) sum += a[m * K + k] * b[n * K + k];
      if (l->c_bytes == 2) sum = sum > 32767 ? 32767 : sum < -32768 ? -32768 : sum;
      wrong += get_c(data_of(mm->c), l, c_index(&mm->info, l, m, n)) != (double)sum;
    }
  }
  free(a);
  free(b);
  return wrong;
}

#endif
