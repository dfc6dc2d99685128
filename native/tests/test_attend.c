/*
 * Caches of keys and values, and attention to them: against sums in double within the bound that
 * scaled_dot_product_attention states; all instruction sets, any way to share the work, and any way to cut memory into
 * segments, bit by bit. Compile: gcc -std=c17 -Inative/include native/tests/test_attend.c native/layers/a[a-z_0-9]*.c
 * native/kernels/[a-z]*.c native/executor/crew.c native/executor/spin.c native/executor/profile.c -lm -lpthread
 */
#include "../layers/lanes_scalar.h"
/* The lanes come first. */
#include "../layers/exp.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

#include "../layers/attend.h"
#include "count.h"

enum { TOKENS_MOST = 200 };

static uint32_t state = 20261129;

static uint32_t random_bits(void) {
  state = state * 1664525u + 1013904223u;
  return state ^ (state >> 15);
}

static int64_t within(int64_t low, int64_t high) { return low + (int64_t)(random_bits() % (uint64_t)(high - low + 1)); }

static float random_float(void) { return (float)((double)(int32_t)random_bits() / 0x1p31); }

static void *need(int64_t bytes) { /* exactly as large as asked for, so that the sanitizers see a step too far */
  void *memory = malloc(bytes ? (size_t)bytes : 1);
  if (!memory) abort();
  return memory;
}

static float *floats(int64_t count, float size) {
  float *made = need(count * 4);
  for (int64_t i = 0; i < count; i++) made[i] = random_float() * size;
  return made;
}

/* ---- exp and tanh against libm --------------------------------------------------------------------------------------- */

static float one_of(vec x) { return x.at[0]; }

static void functions(void) {
  double worst = 0, worst_tanh = 0;
  for (uint64_t bits = 0; bits < 1ull << 32; bits += 40009) {
    const float x = one_of(vec_of_bits(ivec_all((uint32_t)bits)));
    const float y = one_of(vec_exp(vec_all(x)));
    if (isnan(x)) {
      CHECK(isnan(y), "exp of a nan is %g", (double)y);
      continue;
    }
    const double wanted = exp((double)x);
    if (isinf((float)wanted)) {
      CHECK(isinf(y), "exp(%g) is %g", (double)x, (double)y);
      continue;
    }
    int exponent;
    frexp(wanted, &exponent);
    const double unit = ldexp(1.0, exponent < -125 ? -149 : exponent - 24);
    worst = fmax(worst, fabs((double)y - wanted) / unit);
    worst_tanh = fmax(worst_tanh, fabs((double)one_of(vec_tanh(vec_all(x))) - tanh((double)x)) * 0x1p24);
  }
  CHECK(worst < 1.1, "exp is off by %g units", worst);
  CHECK(worst_tanh < 3, "tanh is off by %g units of 2^-24", worst_tanh);
  HOLDS(one_of(vec_exp(vec_all(0.0f))) == 1.0f);
  HOLDS(one_of(vec_exp(vec_all(-INFINITY))) == 0.0f);
}

/* ---- a cache and queries --------------------------------------------------------------------------------------------- */

typedef struct {
  npumm_kv_layer layer;
  npumm_attention how;
  int64_t offset, count;
  float *q, *sinks;
  int64_t out_bytes;
} task;

static int64_t size_of(int32_t type) { return type == NPUMM_KV_FLOAT32 ? 4 : type == NPUMM_KV_FLOAT16 ? 2 : 1; }

static npumm_kv_rows rows_for(int32_t type, int64_t heads, int64_t rows, int64_t dim) {
  const int64_t row = dim * size_of(type);
  float *scales = type == NPUMM_KV_INT8 ? need(heads * rows * 4) : NULL;
  return (npumm_kv_rows){need(heads * rows * row), rows * row, row, scales, rows * 4, 4};
}

static void free_rows(const npumm_kv_rows *rows) {
  free(rows->data);
  free(rows->scales);
}

static int64_t a_dim(void) { return random_bits() % 2 ? 16 * within(1, 6) : within(1, 40); }

static task random_task(void) {
  static const int64_t windows[] = {0, 0, 1, 7, 64, 100};
  task t = {.how.causal = random_bits() % 4 != 0, .how.window = windows[random_bits() % 6]};
  npumm_kv_layer *layer = &t.layer;
  layer->type = (int32_t)within(NPUMM_KV_FLOAT32, NPUMM_KV_INT8);
  layer->heads = within(1, 3);
  layer->key_dim = a_dim();
  layer->value_dim = random_bits() % 2 ? layer->key_dim : a_dim();
  const int64_t tokens = within(1, TOKENS_MOST), heads = layer->heads * within(1, 5);
  t.count = random_bits() % 3 ? within(1, tokens < 40 ? tokens : 40) : 1;
  t.offset = tokens - t.count;
  layer->capacity = tokens;
  layer->keys = rows_for(layer->type, layer->heads, tokens, layer->key_dim);
  layer->values = rows_for(layer->type, layer->heads, tokens, layer->value_dim);
  t.how.heads = heads;
  t.how.scale = (random_bits() % 4 ? 1.0f : 30.0f) / sqrtf((float)layer->key_dim); /* exponentials down to zero */
  t.how.softcap = random_bits() % 3 ? 0.0f : 5.0f;
  t.how.keys = tokens;
  t.sinks = floats(heads, 2.0f);
  t.how.sinks = random_bits() % 2 ? t.sinks : NULL;
  t.q = floats(heads * t.count * layer->key_dim, 3.0f);
  t.out_bytes = heads * t.count * layer->value_dim * 4;
  float *k = floats(layer->heads * tokens * layer->key_dim, 2.0f);
  float *v = floats(layer->heads * tokens * layer->value_dim, 1.0f);
  HOLDS(npumm_kv_append(layer, 0, tokens, k, tokens * layer->key_dim * 4, layer->key_dim * 4, v,
                        tokens * layer->value_dim * 4, layer->value_dim * 4) == NPUMM_OK);
  free(k);
  free(v);
  return t;
}

static void free_task(task *t) {
  free_rows(&t->layer.keys);
  free_rows(&t->layer.values);
  free(t->q);
  free(t->sinks);
}

/* Queries first to first + count of a task, in heads from `head` on, into their places in `out`. */
static void part(const task *t, const npumm_attend_loops *loops, int64_t first, int64_t count, int64_t head,
                 int64_t heads, float *out) {
  const int64_t bytes = npumm_attend_scratch(&t->how, &t->layer, count);
  void *scratch = aligned_alloc(64, (size_t)bytes);
  const int64_t dim = t->layer.key_dim, wide = t->layer.value_dim;
  const int code =
      npumm_attend_by(loops, &t->how, &t->layer, t->offset + first, count, t->q + first * dim, t->count * dim * 4,
                      dim * 4, out + first * wide, t->count * wide * 4, wide * 4, head, heads, scratch, bytes);
  CHECK(code == NPUMM_OK, "npumm_attend returned %d", code);
  free(scratch);
}

static float *by(const task *t, const npumm_attend_loops *loops) {
  float *out = need(t->out_bytes);
  memset(out, 0xff, (size_t)t->out_bytes);
  part(t, loops, 0, t->count, 0, t->how.heads, out);
  return out;
}

/* ---- the definition, in double --------------------------------------------------------------------------------------- */

static double value_at(const npumm_kv_rows *rows, int32_t type, int64_t head, int64_t row, int64_t i) {
  const char *at = (const char *)rows->data + head * rows->head_stride + row * rows->row_stride;
  if (type == NPUMM_KV_FLOAT32) return (double)((const float *)(const void *)at)[i];
  if (type == NPUMM_KV_FLOAT16) return (double)float_of_half(((const uint16_t *)(const void *)at)[i]);
  const char *scale = (const char *)rows->scales + head * rows->scale_head_stride + row * rows->scale_row_stride;
  return (double)((const int8_t *)at)[i] * (double)*(const float *)(const void *)scale;
}

static int sees(const task *t, int64_t number, int64_t j) {
  const int64_t back = number - j;
  if (t->how.causal && back < 0) return 0;
  return !t->how.window || (back < t->how.window && -back < t->how.window);
}

static void against_doubles(const task *t, const float *out) {
  const npumm_kv_layer *layer = &t->layer;
  const int64_t tokens = t->offset + t->count, group = t->how.heads / layer->heads;
  const double v = 0x1p-24;
  int wrong = 0;
  for (int64_t head = 0; head < t->how.heads; head++) {
    for (int64_t i = 0; i < t->count; i++) {
      double scores[TOKENS_MOST], most = t->how.sinks ? (double)t->sinks[head] : -INFINITY, product = 0, largest = 0;
      const float *q = t->q + (head * t->count + i) * layer->key_dim;
      for (int64_t j = 0; j < tokens; j++) {
        double sum = 0, size = 0;
        for (int64_t d = 0; d < layer->key_dim; d++) {
          const double each = (double)q[d] * value_at(&layer->keys, layer->type, head / group, j, d);
          sum += each;
          size += fabs(each);
        }
        sum *= (double)t->how.scale;
        product = fmax(product, size * (double)t->how.scale);
        if (t->how.softcap > 0) sum = (double)t->how.softcap * tanh(sum / (double)t->how.softcap);
        scores[j] = sees(t, t->offset + i, j) ? sum : -INFINITY;
        most = fmax(most, scores[j]);
      }
      double total = t->how.sinks ? exp((double)t->sinks[head] - most) : 0;
      for (int64_t j = 0; j < tokens; j++) total += scores[j] = isinf(most) ? 0 : exp(scores[j] - most);
      for (int64_t e = 0; e < layer->value_dim; e++) {
        double wanted = 0;
        for (int64_t j = 0; j < tokens; j++) {
          const double value = value_at(&layer->values, layer->type, head / group, j, e);
          wanted += scores[j] * value;
          largest = fmax(largest, fabs(value));
        }
        if (total > 0) wanted /= total;
        const double bound = (2 * ((double)layer->key_dim + 4) * v * product + 8 * v * (double)t->how.softcap +
                              (2 * (double)tokens + 16) * v) *
                             largest;
        wrong += !(fabs((double)out[(head * t->count + i) * layer->value_dim + e] - wanted) <= bound);
      }
    }
  }
  CHECK(!wrong, "%d results are out of bounds", wrong);
}

/* ---- the same bits --------------------------------------------------------------------------------------------------- */

static void same(const task *t, const float *one, float *other, const char *what) {
  CHECK(memcmp(one, other, (size_t)t->out_bytes) == 0, "%s: type %d, %d and %d wide, %d tokens from %d on", what,
        (int)t->layer.type, (int)t->layer.key_dim, (int)t->layer.value_dim, (int)t->count, (int)t->offset);
  free(other);
}

static void instruction_sets(const task *t, const float *wanted) {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
    same(t, wanted, by(t, &npumm_attend_avx2), "avx2");
#elif defined(__aarch64__)
  same(t, wanted, by(t, &npumm_attend_neon), "neon");
#endif
  same(t, wanted, by(t, npumm_attend_chosen()), npumm_attend_chosen()->name);
}

static void parts(const task *t, const float *wanted) {
  float *out = need(t->out_bytes);
  for (int64_t i = 0; i < t->count; i++) {
    for (int64_t head = 0; head < t->how.heads; head++) part(t, npumm_attend_chosen(), i, 1, head, 1, out);
  }
  same(t, wanted, out, "each head of each token alone");
  out = need(t->out_bytes);
  const int64_t head = within(0, t->how.heads), token = within(0, t->count);
  part(t, npumm_attend_chosen(), 0, token, 0, t->how.heads, out);
  part(t, npumm_attend_chosen(), token, t->count - token, 0, head, out);
  part(t, npumm_attend_chosen(), token, t->count - token, head, t->how.heads - head, out);
  same(t, wanted, out, "in parts");
}

static int all(const task *t, float *out, int32_t threads) {
  const int64_t dim = t->layer.key_dim, wide = t->layer.value_dim;
  return npumm_attend_all(&t->how, &t->layer, t->offset, t->count, t->q, t->count * dim * 4, dim * 4, out,
                          t->count * wide * 4, wide * 4, threads);
}

static void threads(const task *t, const float *wanted) {
  float *out = need(t->out_bytes);
  HOLDS(all(t, out, 3) == NPUMM_OK);
  same(t, wanted, out, "by three threads");
}

static void copy_rows(const npumm_kv_rows *from, int64_t first, int64_t count, int64_t heads, int64_t row,
                      const npumm_kv_rows *to) {
  for (int64_t head = 0; head < heads; head++) {
    memcpy((char *)to->data + head * to->head_stride,
           (const char *)from->data + head * from->head_stride + first * from->row_stride, (size_t)(count * row));
    if (to->scales) {
      memcpy((char *)to->scales + head * to->scale_head_stride,
             (const char *)from->scales + head * from->scale_head_stride + first * 4, (size_t)count * 4);
    }
  }
}

static npumm_kv_segment piece(const npumm_kv_layer *layer, int64_t first, int64_t count) {
  npumm_kv_segment made = {rows_for(layer->type, layer->heads, count, layer->key_dim),
                           rows_for(layer->type, layer->heads, count, layer->value_dim), count};
  const int64_t size = size_of(layer->type);
  copy_rows(&layer->keys, first, count, layer->heads, layer->key_dim * size, &made.keys);
  copy_rows(&layer->values, first, count, layer->heads, layer->value_dim * size, &made.values);
  return made;
}

/* The tokens in segments, some of them empty, and the last ones in memory of the layer's own; then the last ones alone. */
static void segments(const task *t, const float *wanted) {
  npumm_kv_segment pieces[4];
  const int64_t tokens = t->layer.capacity;
  int64_t first = 0;
  for (int i = 0; i < 4; i++) {
    const int64_t count = i < 3 ? within(0, tokens - first) : tokens - first;
    pieces[i] = piece(&t->layer, first, count);
    first += count;
  }
  task cut = *t;
  cut.layer.base = tokens - pieces[3].rows;
  cut.layer.capacity = pieces[3].rows;
  cut.layer.keys = pieces[3].keys;
  cut.layer.values = pieces[3].values;
  cut.layer.before = pieces;
  cut.layer.before_count = 3;
  same(t, wanted, by(&cut, npumm_attend_chosen()), "in segments");
  for (int i = 0; i < 4; i++) {
    free_rows(&pieces[i].keys);
    free_rows(&pieces[i].values);
  }
  const int64_t behind = t->offset - t->how.window + 1;
  if (!t->how.window || behind < 0) return;
  const npumm_kv_segment last = piece(&t->layer, behind, tokens - behind);
  cut.layer = t->layer;
  cut.layer.base = behind;
  cut.layer.capacity = tokens - behind;
  cut.layer.keys = last.keys;
  cut.layer.values = last.values;
  same(t, wanted, by(&cut, npumm_attend_chosen()), "without what no window reaches");
  free_rows(&last.keys);
  free_rows(&last.values);
}

static void *attend_in_a_thread(void *argument) {
  const task *t = argument;
  float *out = need(t->out_bytes);
  for (int i = 0; i < 20; i++) CHECK(all(t, out, 2) == NPUMM_OK, "beside another thread");
  return out;
}

static void callers_at_once(void) {
  task t = random_task();
  pthread_t other;
  float *wanted = by(&t, &npumm_attend_scalar);
  if (pthread_create(&other, NULL, attend_in_a_thread, &t)) abort();
  same(&t, wanted, attend_in_a_thread(&t), "beside another caller");
  void *out;
  pthread_join(other, &out);
  same(&t, wanted, out, "in another thread");
  free(wanted);
  free_task(&t);
}

/* ---- storing --------------------------------------------------------------------------------------------------------- */

static int append(const npumm_kv_layer *layer, int64_t offset, int64_t count, const float *k, const float *v) {
  return npumm_kv_append(layer, offset, count, k, count * layer->key_dim * 4, layer->key_dim * 4, v,
                         count * layer->value_dim * 4, layer->value_dim * 4);
}

static void what_is_stored(int32_t type) {
  enum { ROWS = 6, WIDTH_OF = 5 };
  npumm_kv_layer layer = {
      .type = type, .heads = 2, .key_dim = WIDTH_OF, .value_dim = WIDTH_OF, .base = 10, .shared = 2, .capacity = ROWS};
  layer.keys = rows_for(type, 2, ROWS, WIDTH_OF);
  layer.values = rows_for(type, 2, ROWS, WIDTH_OF);
  const size_t bytes = (size_t)(2 * layer.keys.head_stride);
  memset(layer.keys.data, 0x55, bytes);
  memset(layer.values.data, 0x55, bytes);
  unsigned char *before = need((int64_t)bytes);
  memcpy(before, layer.keys.data, bytes);
  float *k = floats(2 * 2 * WIDTH_OF, 3.0f), *v = floats(2 * 2 * WIDTH_OF, 3.0f);
  HOLDS(append(&layer, 11, 2, k, v) == NPUMM_NO_ROOM); /* others read row 1 */
  HOLDS(append(&layer, 9, 2, k, v) == NPUMM_NO_ROOM);
  HOLDS(append(&layer, 15, 2, k, v) == NPUMM_NO_ROOM);
  HOLDS(append(&layer, 12, -1, k, v) == NPUMM_BAD_ARGUMENT);
  HOLDS(append(&layer, 12, 0, NULL, NULL) == NPUMM_OK);
  const float kept = v[19];
  v[19] = type == NPUMM_KV_INT8 ? INFINITY : 65520.0f;
  const int refused = type == NPUMM_KV_INT8 ? NPUMM_NOT_FINITE : NPUMM_OUT_OF_RANGE;
  if (type != NPUMM_KV_FLOAT32) HOLDS(append(&layer, 12, 2, k, v) == refused);
  HOLDS(memcmp(before, layer.keys.data, bytes) == 0);
  HOLDS(memcmp(before, layer.values.data, bytes) == 0);
  v[19] = type == NPUMM_KV_FLOAT16 ? -INFINITY : kept; /* an infinity stays one */
  HOLDS(append(&layer, 14, 2, k, v) == NPUMM_OK);
  for (int64_t head = 0; head < 2; head++) {
    for (int64_t i = 0; i < 2; i++) {
      const float *row = v + (head * 2 + i) * WIDTH_OF;
      float most = 0;
      for (int64_t d = 0; d < WIDTH_OF; d++) most = fmaxf(most, fabsf(row[d]));
      for (int64_t d = 0; d < WIDTH_OF; d++) {
        const double got = value_at(&layer.values, type, head, 4 + i, d), wanted = (double)row[d];
        const double unit = type == NPUMM_KV_FLOAT32   ? 0
                            : type == NPUMM_KV_FLOAT16 ? fabs(wanted) * 0x1p-11
                                                       : (double)most / 253;
        CHECK(got == wanted || fabs(got - wanted) <= unit, "%g became %g", wanted, got);
      }
    }
  }
  free(before);
  free(k);
  free(v);
  free_rows(&layer.keys);
  free_rows(&layer.values);
}

/* ---- what has to be refused ------------------------------------------------------------------------------------------ */

static int refusal(const task *t) {
  const int64_t bytes = 1 << 20;
  void *scratch = aligned_alloc(64, (size_t)bytes);
  float *out = need(t->out_bytes);
  const int code =
      npumm_attend(&t->how, &t->layer, t->offset, t->count, t->q, 4, 4, out, 4, 4, 0, t->how.heads, scratch, bytes);
  free(scratch);
  free(out);
  return code;
}

static void refusals(void) {
  const task right = random_task();
  task t = right;
#define REFUSED(change) \
  t = right;            \
  change;               \
  HOLDS(refusal(&t) == NPUMM_BAD_ARGUMENT)
  REFUSED(t.layer.type = NPUMM_KV_NONE);
  REFUSED(t.layer.type = 4);
  REFUSED(t.layer.heads = 0);
  REFUSED(t.how.heads = t.layer.heads * 2 + (t.layer.heads > 1 ? 1 : -3));
  REFUSED(t.layer.key_dim = 0);
  REFUSED(t.layer.value_dim = INT64_MAX);
  REFUSED(t.how.softcap = -1);
  REFUSED(t.how.softcap = NAN);
  REFUSED(t.how.window = -1);
  REFUSED(t.count = -1);
  REFUSED((t.how.causal = 0, t.how.window = 0, t.how.keys = t.layer.capacity + 1));
  REFUSED((t.how.causal = 1, t.layer.capacity--));
  REFUSED((t.how.causal = 1, t.how.window = 0, t.layer.base = 1));
  REFUSED(t.layer.before_count = 1);
  REFUSED(t.layer.before_count = -1);
  REFUSED(t.layer.keys.data = NULL);
  REFUSED((t.layer.type = NPUMM_KV_INT8, t.layer.keys.scales = NULL));
  t = right;
  char scratch[64];
  HOLDS(npumm_attend(&t.how, &t.layer, t.offset, t.count, t.q, 4, 4, t.q, 4, 4, 0, t.how.heads, scratch, 64) ==
        NPUMM_BUFFER_TOO_SMALL);
  HOLDS(npumm_attend(&t.how, &t.layer, t.offset, t.count, t.q, 4, 4, t.q, 4, 4, 1, t.how.heads, scratch, 64) ==
        NPUMM_BAD_ARGUMENT);
  HOLDS(npumm_attend_scratch(&t.how, NULL, 1) == NPUMM_BAD_ARGUMENT);
  free_task(&t);
}

int main(void) {
  functions();
  for (int round = 0; round < 120; round++) {
    task t = random_task();
    float *wanted = by(&t, &npumm_attend_scalar);
    against_doubles(&t, wanted);
    instruction_sets(&t, wanted);
    parts(&t, wanted);
    threads(&t, wanted);
    segments(&t, wanted);
    free(wanted);
    free_task(&t);
  }
  callers_at_once();
  for (int32_t type = NPUMM_KV_FLOAT32; type <= NPUMM_KV_INT8; type++) what_is_stored(type);
  refusals();
  return report("test_attend");
}
