/* The k-th largest of many values. See npumatmul_layers.h. */
#include <stddef.h>
#include <stdlib.h>

#include "npumatmul_layers.h"

enum { BLOCK = 64 };

/* The smallest of a heap comes first: put `value` in the place `at`, or further down where it belongs. */
static void sift(float *heap, int64_t count, int64_t at, float value) {
  for (int64_t child; (child = 2 * at + 1) < count; at = child) {
    if (child + 1 < count && heap[child + 1] < heap[child]) child++;
    if (heap[child] >= value) break;
    heap[at] = heap[child];
  }
  heap[at] = value;
}

/* Compilers make vector code of it: most blocks hold nothing that is large enough. */
static int has_larger(const float *values, float than) {
  int found = 0;
  for (int i = 0; i < BLOCK; i++) found |= values[i] > than;
  return found;
}

int npumm_kth_largest(const float *values, int64_t count, int64_t k, float *kth) {
  if (!values || !kth || k < 1 || k > count || k > NPUMM_TOP_K_MOST) return NPUMM_BAD_ARGUMENT;
  float heap[NPUMM_TOP_K_MOST];
  for (int64_t i = 0; i < k; i++) heap[i] = values[i];
  for (int64_t i = k / 2; i-- > 0;) sift(heap, k, i, heap[i]);
  int64_t i = k;
  for (; i + BLOCK <= count; i += BLOCK) {
    if (!has_larger(values + i, heap[0])) continue;
    for (int64_t j = i; j < i + BLOCK; j++) {
      if (values[j] > heap[0]) sift(heap, k, 0, values[j]);
    }
  }
  for (; i < count; i++) {
    if (values[i] > heap[0]) sift(heap, k, 0, values[i]);
  }
  *kth = heap[0];
  return NPUMM_OK;
}
