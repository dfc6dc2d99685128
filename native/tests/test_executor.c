/*
 * The executor on a runtime of its own (fake_npu.h): cores at once (the threads come
 * from pthread_create, called in the executor), batches of slices, dynamic shapes, and a failure at every call. Compile:
 * gcc -std=c17 -Inative/include -Inative/kernels native/tests/test_executor.c native/executor/[a-z]*.c
 * native/kernels/[a-z]*.c -lm -lpthread
 */
#define _GNU_SOURCE
#include <stddef.h>
#include <sys/wait.h>
#include <unistd.h>

#include "fake_npu.h"

/* Result and number of elements that are wrong. Sums here are below 2^24 quarters: exact in float32 too. */
static int run(npumm_executor *executor, const example *e, npumm_element type, npumm_report *report, int *wrong) {
  static float out[M_MOST][N_MOST]; /* or int32 or bfloat16 */
  memset(out, 0x7f, sizeof out);
  const npumm_epilogue epilogue = {.scale = 2, .low = -INFINITY, .high = INFINITY};
  const npumm_call call = {.a = e->a,
                           .a_row_stride = K_MOST,
                           .a_col_stride = 1,
                           .out = out,
                           .out_row_stride = sizeof out[0],
                           .out_type = type,
                           .epilogue = type == NPUMM_INT32 ? NULL : &epilogue};
  const int code = npumm_execute(executor, &e->placed, &call, report);
  CHECK(atomic_load(&at_work) == 0, "a core is still at work");
  CHECK(atomic_load(&clashes) == 0, "two threads used one context");
  *wrong = 0;
  for (int m = 0; m < e->m; m++) {
    for (int n = 0; n < e->n; n++) {
      const double want = expected(e, m, n) * (type == NPUMM_INT32 ? 1 : 2);
      if (type == NPUMM_INT32) {
        int32_t got;
        memcpy(&got, &out[m][n], 4);
        *wrong += (double)got != want;
      } else if (type == NPUMM_FLOAT32) {
        *wrong += (double)out[m][n] != want;
      } else {
        uint32_t bits = (uint32_t)((const uint16_t *)(const void *)out[m])[n] << 16;
        float got;
        memcpy(&got, &bits, 4);
        *wrong += fabs((double)got - want) > fabs(want) / 256;
      }
    }
  }
  return code;
}

static void results_are_right(npumm_executor *executor) {
  static example e;
  for (int i = 0; i < 200; i++) {
    const int scaled_each = i & 1, cores = within(1, CORES), dynamic = i / 2 % 2;
    const npumm_element types[] = {NPUMM_FLOAT32, NPUMM_BFLOAT16, NPUMM_INT32};
    build(&e, dynamic, cores, scaled_each);
    if (i / 4 % 2) share_rows(&e);
    npumm_report report = {.step = NPUMM_STEP_NONE};
    for (uint64_t times = 1; times <= 2; times++) { /* counts add up */
      int wrong;
      const npumm_element type = types[within(0, scaled_each ? 1 : 2)];
      const int code = run(i % 3 ? executor : NULL, &e, type, &report, &wrong);
      CHECK(code == 0 && wrong == 0, "code %d, %d wrong: %d cores, %d slices, %d buffers, type %d, rows shared: %d",
            code, wrong, cores, e.placed.slice_count, e.placed.a_count, type, e.placed.range_cores != NULL);
      const uint64_t runs = (uint64_t)(e.placed.m_count * e.placed.slice_count * e.placed.n_count);
      CHECK(report.run_calls == times * runs && report.set_io_mem_calls == 3 * times * runs, "runs %d",
            (int)report.run_calls);
      CHECK(report.macs == times * (uint64_t)(e.m * e.k * e.n), "macs %d", (int)report.macs);
      CHECK((report.set_dynamic_shape_calls == 0) == !dynamic, "selections");
      CHECK(report.conversions == 2 * times, "conversions %d", (int)report.conversions);
    }
    take_down(&e);
  }
}

/* The call that fails stops everything, is reported, and the next call succeeds: contexts keep no wrong idea. */
static void failures_are_reported(npumm_executor *executor) {
  static example e;
  for (int i = 0; i < 40; i++) {
    build(&e, i % 2, 1 + i % CORES, 0);
    if (i / CORES % 2) share_rows(&e);
    npumm_report report = {.step = NPUMM_STEP_NONE};
    int wrong;
    atomic_store(&calls, 0);
    run(executor, &e, NPUMM_INT32, &report, &wrong);
    const int total = atomic_load(&calls);
    for (int at = 0; at < total; at += 1 + total / 12) {
      atomic_store(&calls, 0);
      atomic_store(&failures_seen, 0);
      atomic_store(&fail_at, at);
      const int code = run(executor, &e, NPUMM_INT32, &report, &wrong);
      atomic_store(&fail_at, -1);
      if (atomic_load(&failures_seen)) { /* selections are spared the second time, so the call may not come */
        CHECK(code == RKNN_ERR_TIMEOUT && report.code == code, "call %d of %d: code %d", at, total, code);
        CHECK(report.step >= NPUMM_STEP_SYNC_A && report.core >= 0 && report.core < e.placed.core_count, "report");
      }
      CHECK(run(executor, &e, NPUMM_INT32, &report, &wrong) == 0 && wrong == 0, "after a failure: %d wrong", wrong);
    }
    take_down(&e);
  }
}

/* Activations, images of rows and slices that do not fit together: refused before memory is touched. */
static void unfit_activations_are_refused(npumm_executor *executor) {
  static example e;
  static const int32_t zeros[N_MOST];
  npumm_report report = {.step = NPUMM_STEP_NONE};
  int wrong;
  build(&e, 0, 1, 0);
  const npumm_placed_matmul good = e.placed;
  const npumm_activation bad[] = {
      {NPUMM_COPY_8, NPUMM_ROWS_POWER_OF_TWO, 0, 0, 0, 0, NULL},
      {NPUMM_F32_TO_F16, NPUMM_ROWS_ABSMAX, 127, 1, 0, 0, NULL},
      {NPUMM_F32_TO_I8, NPUMM_ROWS_ABSMAX, 128, 1, 0, 0, NULL},
      {NPUMM_F32_TO_I4, NPUMM_ROWS_ABSMAX, 127, 1, 0, 0, NULL},
      {NPUMM_F32_TO_I8, NPUMM_ROWS_ABSMAX, 0, 1, 0, 0, NULL},
      {NPUMM_F32_TO_I8, NPUMM_ROWS_ABSMAX, 127, 0, 0, 0, NULL},
      {NPUMM_F32_TO_I8, NPUMM_ROWS_ABSMAX, 127, 1.5f, 0, 0, NULL},
      {NPUMM_F32_TO_I8, NPUMM_ROWS_ABSMAX, 127, NAN, 0, 0, NULL},
      {NPUMM_F32_TO_I8, NPUMM_ROWS_MINMAX, 127, 1, 0, 0, NULL}, /* slices without column_sums */
      {NPUMM_F32_TO_I8, NPUMM_ROWS_STATIC, 127, 1, 1, 3, NULL}, /* the same */
      {NPUMM_COPY_8, NPUMM_ROWS_UNSCALED, 0, 0, 0, 3, NULL},    /* the same */
      {NPUMM_COPY_8, NPUMM_ROWS_UNSCALED, 0, 0, 0, -129, NULL},
      {NPUMM_F32_TO_F16, NPUMM_ROWS_UNSCALED, 0, 0, 0, 1, NULL},
      {NPUMM_F32_TO_I8, NPUMM_ROWS_STATIC, 127, 1, 0, 0, NULL},
      {NPUMM_F32_TO_I8, NPUMM_ROWS_STATIC, 127, 1, INFINITY, 0, NULL},
      {NPUMM_F32_TO_I8, NPUMM_ROWS_STATIC, 127, 1, 1, 128, NULL},
      {NPUMM_F32_TO_I4_SPLIT, NPUMM_ROWS_ABSMAX, 119, 1, 0, 0, NULL}, /* one image of rows */
      {NPUMM_F32_TO_I8, (npumm_row_scaling)99, 127, 1, 1, 0, NULL},
  };
  for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
    e.placed.activation = bad[i];
    CHECK(run(executor, &e, NPUMM_FLOAT32, &report, &wrong) == NPUMM_BAD_ARGUMENT, "unfit activation %d", (int)i);
    CHECK(report.step == NPUMM_STEP_ARGUMENTS, "step %d", (int)report.step);
  }
  e.placed = good;
  e.slices[0].part = 2; /* a low part of what is no float16 */
  CHECK(run(executor, &e, NPUMM_INT32, &report, &wrong) == NPUMM_BAD_ARGUMENT, "low part");
  e.slices[0].part = 0;
  e.slices[0].column_zero = zeros; /* sums of rows of floats */
  e.placed.activation = (npumm_activation){NPUMM_F32_TO_F16, NPUMM_ROWS_POWER_OF_TWO, 0, 0, 0, 0, NULL};
  CHECK(run(executor, &e, NPUMM_FLOAT32, &report, &wrong) == NPUMM_BAD_ARGUMENT, "zero points without integers");
  take_down(&e);
}

/* Rows that are transformed range by range: divided here, so that the values of the example come out. */
static void rows_are_transformed_before_they_are_packed(npumm_executor *executor) {
  static example e;
  static float a[M_MOST][K_MOST], out[M_MOST][N_MOST], divisor[K_MOST];
  for (int i = 0; i < 60; i++) {
    build(&e, i & 1, within(1, CORES), 0);
    if (i / 2 % 2) share_rows(&e);
    for (int k = 0; k < e.k; k++) divisor[k] = ldexpf(1, within(-4, 4));
    for (int m = 0; m < e.m; m++) { /* columns run backwards */
      for (int k = 0; k < e.k; k++) a[m][K_MOST - 1 - k] = (float)e.a[m][k] * divisor[k];
    }
    const npumm_hadamard transform = {.features = e.k, .power = 1, .divisor = divisor};
    e.placed.activation = (npumm_activation){NPUMM_F32_TO_I8, NPUMM_ROWS_STATIC, 127, 1, 1, 0, &transform};
    const npumm_call call = {.a = &a[0][K_MOST - 1],
                             .a_row_stride = sizeof a[0],
                             .a_col_stride = -(int64_t)sizeof a[0][0],
                             .out = out,
                             .out_row_stride = sizeof out[0],
                             .out_type = NPUMM_FLOAT32};
    npumm_report report = {.step = NPUMM_STEP_NONE};
    CHECK(npumm_execute(executor, &e.placed, &call, &report) == 0, "code %d", (int)report.code);
    int wrong = 0;
    for (int m = 0; m < e.m; m++) {
      for (int n = 0; n < e.n; n++) wrong += (double)out[m][n] != expected(&e, m, n);
    }
    CHECK(wrong == 0, "%d wrong", wrong);
    const int row = within(0, e.m - 1);
    a[row][K_MOST - e.k] = NAN;
    CHECK(npumm_execute(executor, &e.placed, &call, &report) == NPUMM_NOT_FINITE && report.row == row, "nan");
    e.placed.activation = (npumm_activation){NPUMM_F32_TO_I8, NPUMM_ROWS_ABSMAX, 127, 1, 1, 0, &transform};
    CHECK(npumm_execute(executor, &e.placed, &call, &report) == NPUMM_NOT_FINITE && report.row == row, "nan");
    const npumm_hadamard longer = {.features = e.k + 1, .power = 1}, wrong_power = {.features = e.k, .power = 3};
    const npumm_activation bad[] = {
        {NPUMM_F32_TO_I8, NPUMM_ROWS_ABSMAX, 127, 1, 1, 0, &longer},
        {NPUMM_F32_TO_I8, NPUMM_ROWS_ABSMAX, 127, 1, 1, 0, &wrong_power},
        {NPUMM_COPY_8, NPUMM_ROWS_UNSCALED, 127, 1, 1, 0, &transform},
    };
    for (size_t b = 0; b < sizeof bad / sizeof *bad; b++) {
      e.placed.activation = bad[b];
      CHECK(npumm_execute(executor, &e.placed, &call, &report) == NPUMM_BAD_ARGUMENT, "unfit transform %d", (int)b);
      CHECK(report.step == NPUMM_STEP_ARGUMENTS, "step %d", (int)report.step);
    }
    take_down(&e);
  }
}

/*
 * Rows that are scaled in groups, some slices being parts of one: rows of `a` are those of the example times a power of
 * two per row and group, with 127 (and -128) once in each group, so that every value has its code and scales cancel.
 */
static void rows_are_scaled_in_groups(npumm_executor *executor) {
  static example e;
  static float a[M_MOST][K_MOST], out[M_MOST][N_MOST], scales[M_MOST][SLICES];
  static int32_t sums[SLICES][N_MOST];
  for (int i = 0; i < 200; i++) {
    build(&e, i & 1, within(1, CORES), i / 2 % 2);
    if (i / 4 % 2) share_rows(&e);
    const int slices = e.placed.slice_count, zero_points = i / 4 % 2;
    const npumm_hadamard same = {.features = e.k, .power = 1};
    int group_of[SLICES], first = 0;
    for (int s = 0; s < slices; s++) { /* a slice is a group of its own, or belongs to the one before */
      group_of[s] = s == 0 || e.slices[0].k.length == 1 || within(0, 2) ? s : group_of[s - 1];
      if (group_of[s] == s) first = s;
      const int64_t start = e.slices[first].k.start, end = e.slices[s].k.start + e.slices[s].k.length;
      for (int t = first; t <= s; t++) e.slices[t].group = (npumm_range){start, end - start};
    }
    for (int m = 0; m < e.m; m++) {
      for (int s = 0; s < slices; s++) {
        const int64_t from = e.slices[s].k.start, end = from + e.slices[s].k.length;
        scales[m][s] = group_of[s] == s ? ldexpf(1, within(-6, 6)) : scales[m][group_of[s]];
        for (int64_t k = from; k < end; k++) e.a[m][k] = (int8_t)within(-127, 127);
        if (group_of[s] == s) e.a[m][from] = 127;
        if (group_of[s] == s && zero_points && end - from > 1) e.a[m][from + 1] = -128;
        for (int64_t k = from; k < end; k++) a[m][k] = (float)e.a[m][k] * scales[m][s];
      }
    }
    for (int s = 0; s < slices; s++) {
      for (int n = 0; n < e.n; n++) {
        sums[s][n] = 0;
        for (int64_t k = e.slices[s].k.start; k < e.slices[s].k.start + e.slices[s].k.length; k++)
          sums[s][n] += e.b[k][n];
      }
      e.slices[s].column_sums = zero_points ? sums[s] : NULL;
    }
    e.placed.activation = (npumm_activation){
        NPUMM_F32_TO_I8,     zero_points ? NPUMM_ROWS_MINMAX_GROUPS : NPUMM_ROWS_ABSMAX_GROUPS, 127, 1, 0, 0,
        i % 3 ? NULL : &same};
    const npumm_call call = {.a = a,
                             .a_row_stride = sizeof a[0],
                             .a_col_stride = sizeof a[0][0],
                             .out = out,
                             .out_row_stride = sizeof out[0],
                             .out_type = NPUMM_FLOAT32};
    npumm_report report = {.step = NPUMM_STEP_NONE};
    CHECK(npumm_execute(i % 5 ? executor : NULL, &e.placed, &call, &report) == 0, "code %d", (int)report.code);
    int wrong = 0;
    for (int m = 0; m < e.m; m++) {
      for (int n = 0; n < e.n; n++) {
        double want = 0, magnitude = 0;
        for (int s = 0; s < slices; s++) {
          double part = 0;
          for (int64_t k = e.slices[s].k.start; k < e.slices[s].k.start + e.slices[s].k.length; k++) {
            part += (double)a[m][k] * e.b[k][n];
          }
          const double term = part * (e.slices[s].column_scale ? (double)e.slices[s].column_scale[n] : 1.0);
          want += term;
          magnitude += fabs(term);
        }
        /* a group of one value with a zero point has a step of value / 255, which is rounded */
        wrong += fabs((double)out[m][n] - want) > magnitude * (zero_points ? 0x1p-20 : 2 * SLICES * 0x1p-24);
      }
    }
    CHECK(wrong == 0, "%d of %d x %d wrong: %d slices, %d buffers, zero points %d", wrong, e.m, e.n, slices,
          e.placed.a_count, zero_points);
    const int row = within(0, e.m - 1), column = within(0, e.k - 1);
    const float kept = a[row][column];
    a[row][column] = INFINITY;
    CHECK(npumm_execute(executor, &e.placed, &call, &report) == NPUMM_NOT_FINITE && report.row == row &&
              report.step == NPUMM_STEP_PACK_A,
          "inf");
    a[row][column] = kept;
    const int s = within(0, slices - 1);
    const npumm_range good = e.slices[s].group;
    const npumm_range bad[] = {
        {good.start + 1, good.length}, {good.start, good.length - 1}, {good.start, e.k + 1}, {-1, e.k + 1}};
    for (size_t b = 0; b < sizeof bad / sizeof *bad; b++) {
      if (b < 2 && group_of[s] != s) continue; /* which would still hold the slice */
      if (b == 1 && s + 1 < slices && group_of[s + 1] == s) continue;
      e.slices[s].group = bad[b];
      CHECK(npumm_execute(executor, &e.placed, &call, &report) == NPUMM_BAD_ARGUMENT, "unfit group %d", (int)b);
    }
    e.slices[s].group = good;
    e.placed.activation.levels = 128;
    CHECK(npumm_execute(executor, &e.placed, &call, &report) == NPUMM_BAD_ARGUMENT, "levels");
    take_down(&e);
  }
}

/* Codes that are there already, whose 0 stands for something else: what they lack is added to sums of all slices. */
static void codes_have_a_zero_point(npumm_executor *executor) {
  static example e;
  static int32_t sums[SLICES][N_MOST], out[M_MOST][N_MOST];
  for (int i = 0; i < 40; i++) {
    build(&e, i % 2, within(1, CORES), 0);
    const int32_t zero = i % 4 ? within(-128, 127) : -128;
    for (int s = 0; s < e.placed.slice_count; s++) {
      const int64_t from = e.slices[s].k.start, end = from + e.slices[s].k.length;
      for (int n = 0; n < e.n; n++) {
        sums[s][n] = 0;
        for (int64_t k = from; k < end; k++) sums[s][n] += e.b[k][n];
      }
      e.slices[s].column_sums = sums[s];
      e.slices[s].column_scale = NULL;
    }
    e.placed.common_scale = 1;
    e.placed.activation = (npumm_activation){NPUMM_COPY_8, NPUMM_ROWS_UNSCALED, 0, 0, 0, zero, NULL};
    const npumm_call call = {.a = e.a,
                             .a_row_stride = sizeof e.a[0],
                             .a_col_stride = sizeof e.a[0][0],
                             .out = out,
                             .out_row_stride = sizeof out[0],
                             .out_type = NPUMM_INT32};
    npumm_report report = {.step = NPUMM_STEP_NONE};
    CHECK(npumm_execute(executor, &e.placed, &call, &report) == 0, "code %d", (int)report.code);
    int wrong = 0;
    for (int m = 0; m < e.m; m++) {
      for (int n = 0; n < e.n; n++) {
        int32_t want = 0;
        for (int k = 0; k < e.k; k++) want += (e.a[m][k] - zero) * e.b[k][n];
        wrong += out[m][n] != want;
      }
    }
    CHECK(wrong == 0, "%d of %d x %d wrong, zero point %d", wrong, e.m, e.n, (int)zero);
    e.slices[0].column_sums = NULL;
    CHECK(npumm_execute(executor, &e.placed, &call, &report) == (zero ? NPUMM_BAD_ARGUMENT : 0), "no sums");
    take_down(&e);
  }
}

static void bad_arguments_are_refused(npumm_executor *executor) {
  static example e;
  npumm_report report = {.step = NPUMM_STEP_NONE};
  int wrong;
  CHECK(npumm_execute(executor, NULL, NULL, NULL) == NPUMM_BAD_ARGUMENT, "nothing");
  CHECK(npumm_execute(executor, NULL, NULL, &report) == NPUMM_BAD_ARGUMENT, "no matmul");
  build(&e, 0, 2, 0);
  const npumm_placed_matmul good = e.placed;
  const struct {
    size_t offset;
    int32_t value;
  } bad[] = {
      {offsetof(npumm_placed_matmul, slice_count), 0}, {offsetof(npumm_placed_matmul, core_count), 1},
      {offsetof(npumm_placed_matmul, a_count), 0},     {offsetof(npumm_placed_matmul, a_count), NPUMM_A_MOST + 1},
      {offsetof(npumm_placed_matmul, row_images), 3},  {offsetof(npumm_placed_matmul, core_count), 0}};
  e.tile_cores[0] = 1;
  for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
    e.placed = good;
    memcpy((char *)&e.placed + bad[i].offset, &bad[i].value, sizeof bad[i].value);
    CHECK(run(executor, &e, NPUMM_INT32, &report, &wrong) == NPUMM_BAD_ARGUMENT, "bad argument %d", (int)i);
    CHECK(report.step == NPUMM_STEP_ARGUMENTS, "step %d", (int)report.step);
  }
  e.placed = good;
  e.tile_cores[0] = 0;
  CHECK(run(executor, &e, NPUMM_INT32, &report, &wrong) == 0 && wrong == 0, "and again");
  take_down(&e);
  /* of cores that share rows */
  for (build(&e, 0, 2, 0); e.placed.m_count < 3; build(&e, 0, 2, 0)) take_down(&e);
  share_rows(&e);
  static const int32_t wrong_cores[][3] = {{0, 1, 2}, {1, 0, 1}, {-1, 0, 0}};
  for (int i = 0; i < 3; i++) {
    memcpy(e.range_cores, wrong_cores[i], sizeof wrong_cores[i]);
    CHECK(run(executor, &e, NPUMM_INT32, &report, &wrong) == NPUMM_BAD_ARGUMENT, "wrong cores of ranges %d", i);
  }
  for (int i = 0; i < RANGES; i++) e.range_cores[i] = 0;
  const int32_t buffers = e.placed.a_count;
  e.placed.a_count = NPUMM_A_MOST / 2 + 1;
  CHECK(run(executor, &e, NPUMM_INT32, &report, &wrong) == NPUMM_BAD_ARGUMENT, "too many buffers");
  e.placed.a_count = buffers;
  for (int i = 0; i < RANGES * SLICES * TILES; i++) e.shapes[i].context = &e.handles[0];
  CHECK(run(executor, &e, NPUMM_INT32, &report, &wrong) == 0 && wrong == 0, "all on one core");
  take_down(&e);
}

/* A forked child has no workers: what it inherited still computes, in its own thread, and can be given up. */
static void a_child_touches_no_thread(npumm_executor *executor) {
  static example e;
  build(&e, 0, CORES, 0);
  fflush(stdout);
  const pid_t child = fork();
  if (child == 0) {
    npumm_report report = {.step = NPUMM_STEP_NONE};
    int wrong;
    const int code = run(executor, &e, NPUMM_INT32, &report, &wrong);
    npumm_executor_destroy(executor);
    _exit(code != 0 || wrong != 0);
  }
  int status = 1;
  CHECK(child > 0 && waitpid(child, &status, 0) == child && status == 0, "the child ended with %d", status);
  take_down(&e);
}

int main(void) {
  npumm_executor *executor = npumm_executor_create();
  if (!executor) return 1;
  results_are_right(executor);
  failures_are_reported(executor);
  unfit_activations_are_refused(executor);
  rows_are_transformed_before_they_are_packed(executor);
  rows_are_scaled_in_groups(executor);
  codes_have_a_zero_point(executor);
  bad_arguments_are_refused(executor);
  a_child_touches_no_thread(executor);
  npumm_executor_destroy(executor);
  npumm_executor_destroy(NULL);
  return report("test_executor");
}
