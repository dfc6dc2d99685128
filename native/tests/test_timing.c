/*
 * Modelled time: settings, single runs by hand, what the virtual clock adds up, and runs that last as long as they are
 * modelled to. tests/test_sim_timing.py compares single runs with the planner's model over all chips.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <time.h>

#include "check.h"

static int configure(const char *name, const char *value) { return npumm_sim_configure(name, value); }

static uint64_t clock_now(void) {
  npumm_sim_counters counters;
  npumm_sim_read_counters(&counters);
  return counters.device_nanoseconds;
}

/* Picoseconds are rounded per run. */
static void check_clock(double seconds, int line) {
  const double got = (double)clock_now() * 1e-9;
  CHECK(fabs(got - seconds) < 2e-9, "line %d: the clock says %.9f s, not %.9f", line, got, seconds);
}
#define CLOCK_IS(seconds) check_clock(seconds, __LINE__)

static double run_seconds(rknn_matmul_type type, int M, int K, int N, int cores) {
  return npumm_sim_run_seconds("rk3588", (int)type, M, K, N, cores, 1);
}

/* ---- settings ---------------------------------------------------------------------------------------------------- */

static void test_settings(void) {
  static const char *const wrong[] = {
      "start_seconds",
      "start_seconds=",
      "start_seconds=0",
      "start_seconds=-1",
      "start_seconds=+1",
      "start_seconds= 1",
      "start_seconds=1 ",
      "start_seconds=inf",
      "start_seconds=nan",
      "start_seconds=0x1",
      "start_seconds=e5",
      "start_seconds=1e",
      "start_seconds=1e18",
      "start_seconds=1e999",
      "start_seconds=1e-999",
      "start_second=1",
      "start_secondss=1",
      "START_SECONDS=1",
      "start_seconds=1,start_seconds=2",
      "start_seconds=1,",
      ",start_seconds=1",
      "start_seconds=1;join_seconds=1",
      "start_seconds=1.2.3",
      "=1",
      ",",
      "peak=1e12",
  };
  const double before = run_seconds(2, 1, 64, 64, 1);
  for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
    CHECK(configure("NPUMATMUL_SIM_TIMING_CONSTANTS", wrong[i]) == RKNN_ERR_FAIL, "%s", wrong[i]);
    HOLDS(logged("simulator: NPUMATMUL_SIM_TIMING_CONSTANTS is"));
    HOLDS(run_seconds(2, 1, 64, 64, 1) == before);
  }
  CHECK_IS(configure("NPUMATMUL_SIM_TIMING", "fast"), RKNN_ERR_FAIL);
  HOLDS(logged("simulator: NPUMATMUL_SIM_TIMING is \"fast\", not off, model or realtime"));
  CHECK_IS(configure("NPUMATMUL_SIM_TIMING_CONSTANTS", "start_seconds=1,peak_int8=1e9"), 0);
  CHECK_IS(lround(run_seconds(2, 1, 64, 64, 1)), 1);
  CHECK_IS(configure("NPUMATMUL_SIM_TIMING_CONSTANTS", "join_seconds=2.5E+0"), 0);
  HOLDS(run_seconds(2, 1, 64, 64, 1) == before); /* what is not named is the chip's again */
  CHECK_IS(configure("NPUMATMUL_SIM_TIMING_CONSTANTS", NULL), 0);
}

/* ---- single runs ------------------------------------------------------------------------------------------------- */

/* Constants with which sums are easy: a byte takes a microsecond, on three cores at once one and a half. */
#define EASY                                                                                           \
  "start_seconds=1,join_seconds=10,buffer_bytes=65536,bandwidth_one_core=1e6,bandwidth_all_cores=2e6," \
  "bind_seconds=1e-3,host_bandwidth=1e6,normal_c_seconds=1e-3,peak_int8=2e9,peak_float16=1e6"

static void check_run(double got, double expected, int line) {
  CHECK(fabs(got - expected) <= 1e-12 * expected, "line %d: %.15g, not %.15g", line, got, expected);
}
#define RUN_IS(got, expected) check_run(got, expected, __LINE__)

static void test_runs(void) {
  CHECK_IS(configure("NPUMATMUL_SIM_TIMING_CONSTANTS", EASY), 0);
  /* int8, K = 512: a group is 32 rows, 16 KiB; two leave 32 KiB for 64 rows. 200 rows read B four times. */
  RUN_IS(run_seconds(2, 200, 512, 64, 1), 1 + 1e-6 * (4 * 512 * 64 + 200 * 512 + 200 * 64 * 4));
  RUN_IS(run_seconds(2, 200, 512, 64, 3), 1 + 1.5e-6 * (4 * 512 * 64 + 200 * 512 + 200 * 64 * 4));
  RUN_IS(run_seconds(2, 200, 512, 64, 2), 1 + 1e-6 * (4 * 512 * 64 + 200 * 512 + 200 * 64 * 4));
  /* two groups of K = 1024 would fill the buffer: one leaves 32 rows, and nothing overlaps */
  RUN_IS(run_seconds(2, 64, 1024, 64, 1), 1 + 1e-6 * (2 * 1024 * 64 + 64 * 1024 + 64 * 64 * 4) + 1e-9 * 64 * 1024 * 64);
  /* K = 4096: not even one group; every row reads B */
  RUN_IS(run_seconds(2, 3, 4096, 32, 1), 1 + 1e-6 * (3 * 4096 * 32 + 3 * 4096 + 3 * 32 * 4) + 1e-9 * 3 * 4096 * 32);
  /* bound by products */
  RUN_IS(run_seconds(1, 64, 64, 4096, 1), 1 + 2e-6 * 64 * 64 * 4096);
  /* C in normal layout is converted */
  RUN_IS(npumm_sim_run_seconds("rk3588", 2, 1, 64, 64, 1, 0), run_seconds(2, 1, 64, 64, 1) + 64e-3);
  /* a peak for normal layout stands for all of that */
  CHECK_IS(configure("NPUMATMUL_SIM_TIMING_CONSTANTS", EASY ",normal_peak_int8=1e3"), 0);
  RUN_IS(npumm_sim_run_seconds("rk3588", 2, 1, 64, 64, 1, 0), 1 + 2e-3 * 64 * 64);
  CHECK_IS(configure("NPUMATMUL_SIM_TIMING_CONSTANTS", NULL), 0);
  HOLDS(npumm_sim_run_seconds("rk3599", 2, 1, 64, 64, 1, 1) == -1);
  HOLDS(npumm_sim_run_seconds("rk3588", 11, 1, 64, 64, 1, 1) == -1);
  HOLDS(npumm_sim_run_seconds(NULL, 2, 1, 64, 64, 1, 1) == -1);
  HOLDS(run_seconds(2, 0, 64, 64, 1) == -1);
  HOLDS(run_seconds(2, 1, -64, 64, 1) == -1);
  HOLDS(run_seconds(2, 1, 64, 64, 0) == -1);
  HOLDS(run_seconds(2, 1, 64, 64, 4) == -1);
}

/* More of anything never takes less time, with any constants. */
static void test_any_run(void) {
  for (int i = 0; i < 2000; i++) {
    char constants[400];
    snprintf(constants, sizeof constants,
             "start_seconds=%de-6,buffer_bytes=%d,bandwidth_one_core=%de9,bandwidth_all_cores=%de9,peak_int8=%de11",
             random_between(1, 99), 1 << random_between(10, 20), random_between(1, 20), random_between(20, 60),
             random_between(1, 60));
    CHECK_IS(configure("NPUMATMUL_SIM_TIMING_CONSTANTS", constants), 0);
    const int M = random_between(1, 600), K = 32 * random_between(1, 300), N = 32 * random_between(1, 300);
    const double base = run_seconds(2, M, K, N, 1) * (1 - 1e-12);
    HOLDS(base > 0);
    CHECK(run_seconds(2, M + 1, K, N, 1) >= base, "%d %d %d, %s: M", M, K, N, constants);
    CHECK(run_seconds(2, M, 2 * K, N, 1) >= base, "%d %d %d, %s: K", M, K, N, constants);
    CHECK(run_seconds(2, M, K, N + 32, 1) >= base, "%d %d %d, %s: N", M, K, N, constants);
    CHECK(run_seconds(2, M, K, N, 2) >= base, "%d %d %d, %s: 2 cores", M, K, N, constants);
    CHECK(run_seconds(2, M, K, N, 3) >= run_seconds(2, M, K, N, 2) * (1 - 1e-12), "%d %d %d: 3 cores", M, K, N);
  }
  CHECK_IS(configure("NPUMATMUL_SIM_TIMING_CONSTANTS", NULL), 0);
}

/* ---- the virtual clock ------------------------------------------------------------------------------------------- */

static void open_on(matmul *mm, int core, int M, int N) {
  CHECK(open_matmul(mm, make_info(2, M, 512, N, 1, 1)), "not created");
  if (core >= 0) CHECK_IS(rknn_matmul_set_core_mask(mm->ctx, (rknn_core_mask)(1 << core)), 0);
  bind_all(mm);
}

static void run(const matmul *mm) { CHECK_IS(rknn_matmul_run(mm->ctx), 0); }

static void sync_a(const matmul *mm) { CHECK_IS(rknn_mem_sync(mm->ctx, mm->a, RKNN_MEMORY_SYNC_TO_DEVICE), 0); }

static double larger(double a, double b) { return a > b ? a : b; }

static void test_clock(void) {
  CHECK_IS(configure("NPUMATMUL_SIM_TIMING_CONSTANTS", EASY), 0);
  matmul off, mm[3], other;
  open_on(&off, 0, 4, 64);
  CHECK_IS(configure("NPUMATMUL_SIM_TIMING", "model"), 0);
  npumm_sim_reset_counters();
  run(&off); /* keeps the setting that it was made with */
  CLOCK_IS(0);
  for (int core = 0; core < 3; core++) open_on(&mm[core], core, 4, 64 << core);
  CLOCK_IS(3e-3); /* three tensors were bound for each of three cores, by three threads at once */
  npumm_sim_reset_counters();
  CLOCK_IS(0);

  /* one core: one after the other, whatever is synchronised */
  const double alone = run_seconds(2, 4, 512, 64, 1);
  run(&mm[0]);
  run(&mm[0]);
  CLOCK_IS(2 * alone);
  sync_a(&mm[0]);
  run(&mm[0]);
  CLOCK_IS(3 * alone);
  rknn_perf_run perf;
  CHECK_IS(rknn_query(mm[0].ctx, RKNN_QUERY_PERF_RUN, &perf, sizeof perf), 0);
  CHECK_IS(perf.run_duration, llround(alone * 1e6));
  sync_a(&mm[0]);
  CLOCK_IS(3 * alone);

  /* three cores: all of the batch shares the memory, and is joined once */
  npumm_sim_reset_counters();
  double busiest = 0;
  for (int core = 0; core < 3; core++) {
    run(&mm[core]);
    run(&mm[core]);
    busiest = larger(busiest, 2 * run_seconds(2, 4, 512, 64 << core, 3));
  }
  CLOCK_IS(10 + busiest);
  rknn_mem_sync(mm[2].ctx, mm[2].c, RKNN_MEMORY_SYNC_FROM_DEVICE); /* ends nothing */
  run(&mm[2]);
  busiest += run_seconds(2, 4, 512, 256, 3);
  CLOCK_IS(10 + busiest);

  /* the next batch: a core that has not run in it does not end it when its operands come */
  sync_a(&mm[2]);
  run(&mm[2]);
  sync_a(&mm[1]);
  run(&mm[1]);
  const double two = larger(run_seconds(2, 4, 512, 256, 2), run_seconds(2, 4, 512, 128, 2));
  CLOCK_IS(10 + busiest + 10 + two);

  /* a context without a core of its own does, and memory without a context */
  open_on(&other, -1, 4, 64);
  CLOCK_IS(10 + busiest + 10 + two); /* bound by whoever serves core 0, which has less to do */
  sync_a(&other);
  run(&mm[0]);
  CHECK_IS(rknn_mem_sync(0, mm[0].a, RKNN_MEMORY_SYNC_BIDIRECTIONAL), 0);
  run(&mm[1]);
  CLOCK_IS(10 + busiest + 10 + two + alone + run_seconds(2, 4, 512, 128, 1));

  /* a run that fails took no time */
  npumm_sim_reset_counters();
  CHECK_IS(configure("NPUMATMUL_SIM_FAULTS", "run:code=-2"), 0);
  CHECK_IS(rknn_matmul_run(mm[0].ctx), -2);
  CHECK_IS(configure("NPUMATMUL_SIM_FAULTS", NULL), 0);
  CLOCK_IS(0);

  /* the JSON tells each core's runs */
  run(&mm[0]);
  run(&mm[1]);
  char json[4096], expected[200];
  HOLDS(npumm_sim_counters_json(json, sizeof json) < sizeof json);
  const double slower = run_seconds(2, 4, 512, 128, 2);
  snprintf(expected, sizeof expected, "\"nanoseconds\":{\"all\":%lld,\"cores\":[%lld,%lld,0]}",
           llround((10 + slower) * 1e9), llround(run_seconds(2, 4, 512, 64, 2) * 1e9), llround(slower * 1e9));
  CHECK(strstr(json, expected), "%s is not in %s", expected, json);

  /* a B that the runtime packs is copied by the host, and C in normal layout is converted */
  matmul normal;
  npumm_sim_reset_counters();
  CHECK(open_matmul(&normal, make_info(2, 4, 512, 64, 0, 0)), "not created");
  bind_all(&normal);
  CLOCK_IS(3e-3 + 512 * 64 / 1e6);
  sync_a(&normal);
  run(&normal);
  CLOCK_IS(3e-3 + 512 * 64 / 1e6 + npumm_sim_run_seconds("rk3588", 2, 4, 512, 64, 1, 0));

  close_matmul(&normal);
  close_matmul(&other);
  close_matmul(&off);
  for (int core = 0; core < 3; core++) close_matmul(&mm[core]);
  CHECK_IS(configure("NPUMATMUL_SIM_TIMING", NULL), 0);
  CHECK_IS(configure("NPUMATMUL_SIM_TIMING_CONSTANTS", NULL), 0);
}

/* ---- threads ----------------------------------------------------------------------------------------------------- */

enum { TIMES = 20 };
static pthread_barrier_t together;

static void *run_often(void *argument) {
  const matmul *mm = argument;
  for (int i = 0; i < TIMES; i++) {
    if (mm->info.N == 64) sync_a(mm); /* new operands, brought by one of them before the others begin */
    pthread_barrier_wait(&together);
    for (int j = 0; j < 3; j++) run(mm);
    pthread_barrier_wait(&together);
  }
  return NULL;
}

/* Time comes out the same whichever thread is first. */
static void test_threads(void) {
  CHECK_IS(configure("NPUMATMUL_SIM_TIMING_CONSTANTS", EASY), 0);
  CHECK_IS(configure("NPUMATMUL_SIM_TIMING", "model"), 0);
  pthread_barrier_init(&together, NULL, 3);
  matmul mm[3];
  pthread_t threads[3];
  for (int core = 0; core < 3; core++) open_on(&mm[core], core, 4, 64 << core);
  npumm_sim_reset_counters();
  for (int core = 0; core < 3; core++) {
    if (pthread_create(&threads[core], NULL, run_often, &mm[core])) abort();
  }
  for (int core = 0; core < 3; core++) pthread_join(threads[core], NULL);
  CLOCK_IS(TIMES * (10 + 3 * run_seconds(2, 4, 512, 256, 3)));
  for (int core = 0; core < 3; core++) close_matmul(&mm[core]);
  pthread_barrier_destroy(&together);
  CHECK_IS(configure("NPUMATMUL_SIM_TIMING", NULL), 0);
  CHECK_IS(configure("NPUMATMUL_SIM_TIMING_CONSTANTS", NULL), 0);
}

/* ---- realtime ---------------------------------------------------------------------------------------------------- */

static double seconds(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

static void *run_once(void *mm) {
  run(mm);
  return NULL;
}

static void test_realtime(void) {
  CHECK_IS(configure("NPUMATMUL_SIM_TIMING", "realtime"), 0);
  CHECK_IS(configure("NPUMATMUL_SIM_TIMING_CONSTANTS", "start_seconds=0.05,join_seconds=0.05"), 0);
  matmul mm[2];
  pthread_t threads[2];
  npumm_sim_reset_counters();
  for (int core = 0; core < 2; core++) open_on(&mm[core], core, 4, 64);
  double before = seconds();
  run(&mm[0]);
  run(&mm[0]);
  HOLDS(seconds() - before >= 2 * run_seconds(2, 4, 512, 64, 1));
  HOLDS(clock_now() >= 100000000);

  /* two contexts on one core share it */
  CHECK_IS(rknn_matmul_set_core_mask(mm[1].ctx, RKNN_NPU_CORE_0), 0);
  before = seconds();
  for (int i = 0; i < 2; i++) {
    if (pthread_create(&threads[i], NULL, run_once, &mm[i])) abort();
  }
  for (int i = 0; i < 2; i++) pthread_join(threads[i], NULL);
  HOLDS(seconds() - before >= 2 * run_seconds(2, 4, 512, 64, 1));
  for (int core = 0; core < 2; core++) close_matmul(&mm[core]);

  /* runs that would last for ever are let go */
  CHECK_IS(configure("NPUMATMUL_SIM_TIMING_CONSTANTS", "start_seconds=9e17"), 0);
  for (int core = 0; core < 2; core++) open_on(&mm[core], core, 4, 64);
  for (int i = 0; i < 2; i++) {
    if (pthread_create(&threads[i], NULL, run_once, &mm[i])) abort();
  }
  npumm_sim_counters counters = {0};
  while (counters.run_calls < 5) npumm_sim_read_counters(&counters); /* one of them has begun, at least */
  CHECK_IS(configure("NPUMATMUL_SIM_TIMING", "off"), 0);
  for (int i = 0; i < 2; i++) pthread_join(threads[i], NULL);
  for (int core = 0; core < 2; core++) close_matmul(&mm[core]);
  CHECK_IS(configure("NPUMATMUL_SIM_TIMING_CONSTANTS", NULL), 0);
}

int main(void) {
  start_log();
  test_settings();
  test_runs();
  test_any_run();
  test_clock();
  test_threads();
  test_realtime();
  return report("test_timing");
}
