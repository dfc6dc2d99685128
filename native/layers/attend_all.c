/* Attention of all heads by several threads. */
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/types.h>
#include <unistd.h>

#include "../executor/crew.h"
#include "../executor/profile.h"
#include "attend_all.h"

enum { THREADS_MOST = 16, QUERIES = 256 };

typedef struct {
  const npumm_attention *how;
  const npumm_kv_layer *layer;
  int64_t offset, count;
  const char *q;
  int64_t q_head_stride, q_row_stride;
  char *out;
  int64_t out_head_stride, out_row_stride;
  int64_t heads, queries, ranges, parts; /* of a part at most; ranges of queries, and parts in all */
  char *scratch;
  int64_t scratch_bytes; /* of each thread */
  atomic_int_fast64_t next;
  atomic_int code;
} task;

/* What queries of the last of `count` tokens see of a cache. */
static int64_t bytes_seen(const npumm_kv_layer *layer, int64_t tokens) {
  const int64_t each = layer->type == NPUMM_KV_FLOAT32 ? 4 : layer->type == NPUMM_KV_FLOAT16 ? 2 : 1;
  const int64_t seen = layer->window && layer->window < tokens ? layer->window : tokens;
  return seen * layer->heads * (layer->key_dim + layer->value_dim) * each;
}

/* Parts that nobody took yet, until there are none; the last queries come first, as they see most tokens. */
static void work(void *argument, int32_t thread) {
  task *t = argument;
  for (int64_t part; (part = atomic_fetch_add(&t->next, 1)) < t->parts;) {
    const int64_t head = part % (t->parts / t->ranges) * t->heads;
    const int64_t first = (t->ranges - 1 - part / (t->parts / t->ranges)) * t->queries;
    const int64_t heads = t->how->heads - head < t->heads ? t->how->heads - head : t->heads;
    const int64_t count = t->count - first < t->queries ? t->count - first : t->queries;
    const int code = npumm_attend(
        t->how, t->layer, t->offset + first, count, (const float *)(const void *)(t->q + first * t->q_row_stride),
        t->q_head_stride, t->q_row_stride, (float *)(void *)(t->out + first * t->out_row_stride), t->out_head_stride,
        t->out_row_stride, head, heads, t->scratch + thread * t->scratch_bytes, t->scratch_bytes);
    if (code) atomic_store(&t->code, code);
  }
}

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static npumm_crew *crew; /* guarded by the lock, as is who made it */
static pid_t owner;

/* By the threads of one set for the process, unless somebody else has them. */
static void share(task *t, int32_t threads) {
  if (threads < 2 || pthread_mutex_trylock(&lock) != 0) {
    work(t, 0);
    return;
  }
  if (!crew || owner != getpid()) { /* threads of a parent are not there in a forked child */
    crew = npumm_crew_create();
    owner = getpid();
  }
  (void)npumm_crew_run(crew, threads, work, t);
  pthread_mutex_unlock(&lock);
}

int npumm_attend_crew(npumm_crew *own, const npumm_attention *how, const npumm_kv_layer *layer, int64_t offset,
                      int64_t count, const float *q, int64_t q_head_stride, int64_t q_row_stride, float *out,
                      int64_t out_head_stride, int64_t out_row_stride, int32_t threads) {
  const int64_t bytes = npumm_attend_scratch(how, layer, count < QUERIES ? count : QUERIES);
  if (bytes < 0 || count < 0 || !q || !out) return NPUMM_BAD_ARGUMENT;
  if (count == 0) return NPUMM_OK;
  if (threads > THREADS_MOST) threads = THREADS_MOST;
  if (threads < 1) threads = 1;
  task t = {.how = how,
            .layer = layer,
            .offset = offset,
            .count = count,
            .q = (const char *)q,
            .q_head_stride = q_head_stride,
            .q_row_stride = q_row_stride,
            .out = (char *)out,
            .out_head_stride = out_head_stride,
            .out_row_stride = out_row_stride,
            .heads = how->heads / layer->heads,
            .scratch_bytes = bytes};
  const int64_t alone = (how->heads + threads - 1) / threads;
  if (count == 1) t.heads = alone; /* as many for each thread, although two may read the same keys then */
  t.queries = count < QUERIES ? count : QUERIES;
  t.ranges = (count + t.queries - 1) / t.queries;
  t.parts = (how->heads + t.heads - 1) / t.heads * t.ranges;
  t.scratch = aligned_alloc(64, (size_t)(bytes * threads));
  if (!t.scratch) return NPUMM_NO_MEMORY;
  const int64_t begun = npumm_profile_begin();
  if (own && threads > 1) (void)npumm_crew_run(own, threads, work, &t); /* only who attends gives up */
  else share(&t, threads);
  npumm_profile_end(begun, NPUMM_SPAN_ATTEND, 0, -1, bytes_seen(layer, offset + count), 0);
  free(t.scratch);
  return atomic_load(&t.code);
}

int npumm_attend_all(const npumm_attention *how, const npumm_kv_layer *layer, int64_t offset, int64_t count,
                     const float *q, int64_t q_head_stride, int64_t q_row_stride, float *out, int64_t out_head_stride,
                     int64_t out_row_stride, int32_t threads) {
  return npumm_attend_crew(NULL, how, layer, offset, count, q, q_head_stride, q_row_stride, out, out_head_stride,
                           out_row_stride, threads);
}
