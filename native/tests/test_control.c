/*
 * What is exported beside the vendor's functions: settings, faults, counters, traces.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>

#include "check.h"

static double seconds(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

static int configure(const char *name, const char *value) { return npumm_sim_configure(name, value); }

/* ---- settings ---------------------------------------------------------------------------------------------------- */

static void test_settings(void) {
  static const char *const malformed[][2] = {
      {"NPUMATMUL_SIM_SOC", "rk3399"},
      {"NPUMATMUL_SIM_RUNTIME", "1.4.0"},
      {"NPUMATMUL_SIM_LIMITS", "none"},
      {"NPUMATMUL_SIM_BROKEN", "yes"},
      {"NPUMATMUL_SIM_OVERFLOW", "Wrap"},
      {"NPUMATMUL_SIM_STRICT", "2"},
      {"NPUMATMUL_SIM_ROWS", "4"},
      {"NPUMATMUL_SIM_INT4_ROWS", "exact"},
      {"NPUMATMUL_SIM_FOREIGN", "1"},
      {"NPUMATMUL_SIM_CONTEXTS", "0"},
      {"NPUMATMUL_SIM_CONTEXTS", "-1"},
      {"NPUMATMUL_SIM_CONTEXTS", "12x"},
      {"NPUMATMUL_SIM_CONTEXTS", "99999999999999999999"},
      {"NPUMATMUL_SIM_DOMAIN_BYTES", " 1"},
      {"NPUMATMUL_SIM_DOMAIN_BYTES", "4294967297"},
      {"NPUMATMUL_SIM_TRACE", "/no/such/directory/trace.json"},
      {"NPUMATMUL_SIM_INSTRUCTIONS", "mmx"},
      {"NPUMATMUL_SIM_INSTRUCTIONS", "Best"},
      {"NPUMATMUL_SIM_FAULTS", "run"},
      {"NPUMATMUL_SIM_FAULTS", "run:"},
      {"NPUMATMUL_SIM_FAULTS", "run:after=1"},
      {"NPUMATMUL_SIM_FAULTS", "run:code=-2;"},
      {"NPUMATMUL_SIM_FAULTS", ";run:code=-2"},
      {"NPUMATMUL_SIM_FAULTS", "walk:code=-2"},
      {"NPUMATMUL_SIM_FAULTS", "run:code=2"},
      {"NPUMATMUL_SIM_FAULTS", "run:code=-14"},
      {"NPUMATMUL_SIM_FAULTS", "run:code=-0"},
      {"NPUMATMUL_SIM_FAULTS", "run:code"},
      {"NPUMATMUL_SIM_FAULTS", "run:code=-2:after=x"},
      {"NPUMATMUL_SIM_FAULTS", "run:code=-2:prob=1.5"},
      {"NPUMATMUL_SIM_FAULTS", "run:code=-2:prob=nan"},
      {"NPUMATMUL_SIM_FAULTS", "run:code=-2:prob=.1.2"},
      {"NPUMATMUL_SIM_FAULTS", "run:delay_ms=-5"},
      {"NPUMATMUL_SIM_FAULTS", "run:code=-2:speed=1"},
  };
  for (size_t i = 0; i < sizeof malformed / sizeof *malformed; i++) {
    int result = configure(malformed[i][0], malformed[i][1]);
    CHECK(result == -1, "%s=%s: %d", malformed[i][0], malformed[i][1], result);
    char line[256];
    snprintf(line, sizeof line, "simulator: %s is \"%s\", not ", malformed[i][0], malformed[i][1]);
    CHECK(logged(line), "no line: %s", line);
  }
  CHECK_IS(configure("NPUMATMUL_SIM_COLOUR", "1"), -5);
  CHECK_IS(configure(NULL, "1"), -5);
  matmul mm; /* nothing of that had an effect */
  CHECK(open_matmul(&mm, make_info(2, 1, 32, 32, 1, 0)), "not created");
  close_matmul(&mm);

  char *longest = need(9000);
  memset(longest, 'x', 8999);
  CHECK_IS(configure("NPUMATMUL_SIM_FAULTS", longest), -1);
  free(longest);
}

/* What this program prints when it runs itself with other settings. EMULATOR: what it takes to run it, such as qemu. */
static void run_self(const char *self, const char *environment, char *text, size_t size) {
  const char *emulator = getenv("EMULATOR");
  char command[4096];
  snprintf(command, sizeof command, "%s %s '%s' create 2>&1", environment, emulator ? emulator : "", self);
  FILE *child = popen(command, "r");
  size_t length = child ? fread(text, 1, size - 1, child) : 0;
  text[length] = '\0';
  if (child) pclose(child);
}

/* The environment is read at load. */
static void test_environment(const char *self) {
  char text[1024];
  run_self(self, "NPUMATMUL_SIM_ROWS=three", text, sizeof text);
  CHECK(strstr(text, "simulator: NPUMATMUL_SIM_ROWS is \"three\", not exact or ceil4\n"), "said: %s", text);
  CHECK(strstr(text, "create: -1\nconfigure: 0\ncreate: 0\n"), "said: %s", text);
  run_self(self, "NPUMATMUL_SIM_STRCT=1 NPUMATMUL_SIM_STRICT=1", text, sizeof text);
  CHECK(strstr(text, "simulator: there is no setting NPUMATMUL_SIM_STRCT\n"), "said: %s", text);
  CHECK(!strstr(text, "NPUMATMUL_SIM_STRICT"), "said: %s", text);
  run_self(self, "NPUMATMUL_SIM_SOC=rk3566 NPUMATMUL_SIM_FAULTS=create:code=-3:times=1", text, sizeof text);
  CHECK(strstr(text, "create: -3\nconfigure: 0\ncreate: 0\nrk3566\n"), "said: %s", text);
}

static int child_create(void) {
  for (int i = 0; i < 2; i++) {
    rknn_matmul_info info = make_info(2, 1, 32, 32, 1, 0);
    rknn_matmul_io_attr io;
    rknn_matmul_ctx ctx;
    printf("create: %d\n", rknn_matmul_create(&ctx, &info, &io));
    if (i == 0) printf("configure: %d\n", configure("NPUMATMUL_SIM_ROWS", "exact"));
  }
  printf("%s\n", npumm_sim_describe(NULL));
  return 0;
}

/* ---- faults ------------------------------------------------------------------------------------------------------ */

static void test_codes(void) {
  matmul mm;
  CHECK(open_matmul(&mm, make_info(2, 1, 32, 32, 1, 0)), "not created");
  bind_all(&mm);
  CHECK_IS(configure("NPUMATMUL_SIM_FAULTS", "run:after=2:times=3:code=-2"), 0);
  static const int expected[] = {0, 0, -2, -2, -2, 0, 0};
  for (size_t i = 0; i < 7; i++) CHECK_IS(rknn_matmul_run(mm.ctx), expected[i]);
  CHECK(logged("rknn_matmul_run, simulator: injected fault, code -2"), "log");

  CHECK_IS(configure("NPUMATMUL_SIM_FAULTS", "create_mem:after=1:code=-4;set_io_mem:code=-5;mem_sync:code=-7"), 0);
  rknn_tensor_mem *first = rknn_create_mem(mm.ctx, 64);
  CHECK(first != NULL, "the first one passes");
  CHECK(!rknn_create_mem2(mm.ctx, 64, 0), "the second one does not");
  CHECK_IS(rknn_matmul_set_io_mem(mm.ctx, mm.a, &mm.io.A), -5);
  CHECK_IS(rknn_mem_sync(mm.ctx, mm.a, RKNN_MEMORY_SYNC_TO_DEVICE), -7);
  CHECK_IS(rknn_matmul_run(mm.ctx), 0);
  CHECK_IS(rknn_destroy_mem(0, first), 0);

  /* The same seed gives the same faults, about as many as asked for. */
  uint64_t seen[2] = {0};
  for (int round = 0; round < 2; round++) {
    CHECK_IS(configure("NPUMATMUL_SIM_FAULTS", "run:prob=0.25:seed=7:code=-1"), 0);
    for (int i = 0; i < 64; i++) seen[round] |= (uint64_t)(rknn_matmul_run(mm.ctx) == -1) << i;
  }
  CHECK(seen[0] == seen[1], "not reproducible");
  int faults = __builtin_popcountll(seen[0]);
  CHECK(faults > 4 && faults < 32, "%d faults of 64", faults);
  CHECK_IS(configure("NPUMATMUL_SIM_FAULTS", "run:prob=0:code=-1"), 0);
  for (int i = 0; i < 64; i++) CHECK_IS(rknn_matmul_run(mm.ctx), 0);

  CHECK_IS(configure("NPUMATMUL_SIM_FAULTS", "run:delay_ms=60;run:delay_ms=20:times=1"), 0);
  double start = seconds();
  CHECK_IS(rknn_matmul_run(mm.ctx), 0);
  CHECK(seconds() - start >= 0.08, "waited %g s", seconds() - start);
  CHECK_IS(configure("NPUMATMUL_SIM_FAULTS", ""), 0);

  /* A failed create leaves the caller's variables alone. */
  CHECK_IS(configure("NPUMATMUL_SIM_FAULTS", "create:code=-3;create_dynamic_shape:code=-6"), 0);
  rknn_matmul_ctx ctx = 99;
  rknn_matmul_io_attr io;
  rknn_matmul_shape shape = {1, 32, 32};
  CHECK_IS(rknn_matmul_create(&ctx, &mm.info, &io), -3);
  CHECK_IS(rknn_matmul_create_dynamic_shape(&ctx, &mm.info, 1, &shape, &io), -6);
  CHECK_IS(ctx, 99);
  CHECK_IS(configure("NPUMATMUL_SIM_FAULTS", NULL), 0);
  close_matmul(&mm);
}

static void *hanging_run(void *argument) {
  static int result;
  result = rknn_matmul_run(*(rknn_matmul_ctx *)argument);
  return &result;
}

static void test_hang(void) {
  matmul mm;
  CHECK(open_matmul(&mm, make_info(2, 1, 32, 32, 1, 0)), "not created");
  bind_all(&mm);
  CHECK_IS(configure("NPUMATMUL_SIM_FAULTS", "run:hang"), 0);
  pthread_t thread;
  pthread_create(&thread, NULL, hanging_run, &mm.ctx);
  struct timespec wait = {.tv_nsec = 100000000};
  nanosleep(&wait, NULL);
  void *result = NULL;
  CHECK(pthread_tryjoin_np(thread, &result) != 0, "it did not hang");
  CHECK_IS(configure("NPUMATMUL_SIM_FAULTS", NULL), 0);
  pthread_join(thread, &result);
  CHECK_IS(*(int *)result, -2);
  close_matmul(&mm);
}

static void test_lost_device(void) {
  matmul mm;
  rknn_matmul_ctx ctx = 99;
  rknn_matmul_io_attr io;
  CHECK(open_matmul(&mm, make_info(2, 1, 32, 32, 1, 0)), "not created");
  bind_all(&mm);
  CHECK_IS(configure("NPUMATMUL_SIM_FAULTS", "run:after=1:lost"), 0);
  CHECK(rknn_matmul_run(mm.ctx) == 0 && rknn_mem_sync(mm.ctx, mm.a, RKNN_MEMORY_SYNC_TO_DEVICE) == 0,
        "there until then");
  CHECK_IS(rknn_matmul_run(mm.ctx), -3);
  CHECK_IS(rknn_matmul_run(mm.ctx), -3);
  CHECK_IS(rknn_mem_sync(mm.ctx, mm.a, RKNN_MEMORY_SYNC_TO_DEVICE), -3);
  CHECK(!rknn_create_mem(mm.ctx, 64), "nothing is allocated");
  CHECK_IS(rknn_matmul_create(&ctx, &mm.info, &io), -3);
  CHECK_IS(rknn_destroy_mem(mm.ctx, mm.a), -3);
  CHECK_IS(rknn_matmul_destroy(mm.ctx), -3);
  CHECK_IS(configure("NPUMATMUL_SIM_FAULTS", "mem_sync:lost:code=-1"), 0);
  CHECK_IS(rknn_matmul_run(mm.ctx), 0);
  CHECK_IS(rknn_mem_sync(mm.ctx, mm.a, RKNN_MEMORY_SYNC_TO_DEVICE), -1);
  CHECK_IS(rknn_matmul_run(mm.ctx), -1);
  CHECK_IS(configure("NPUMATMUL_SIM_FAULTS", NULL), 0);
  CHECK_IS(rknn_matmul_run(mm.ctx), 0);
  close_matmul(&mm);
}

static void test_driver(void) {
  matmul mm;
  rknn_matmul_ctx ctx = 99;
  rknn_matmul_io_attr io;
  rknn_matmul_shape shape = {1, 32, 32};
  CHECK(open_matmul(&mm, make_info(2, 1, 32, 32, 1, 0)), "not created");
  for (int i = 0; i < 2; i++) {
    CHECK_IS(configure("NPUMATMUL_SIM_DRIVER", i ? "old" : "missing"), 0);
    CHECK_IS(rknn_matmul_create(&ctx, &mm.info, &io), -1);
    CHECK_IS(rknn_matmul_create_dynamic_shape(&ctx, &mm.info, 1, &shape, &io), -1);
    CHECK(!rknn_create_mem(mm.ctx, 64) && !rknn_create_mem2(mm.ctx, 64, 0), "nothing is allocated");
    CHECK_IS(ctx, 99);
  }
  CHECK_IS(configure("NPUMATMUL_SIM_DRIVER", "new"), -1);
  CHECK_IS(configure("NPUMATMUL_SIM_DRIVER", NULL), 0);
  close_matmul(&mm);
}

/* ---- counters and trace ------------------------------------------------------------------------------------------ */

static char *json(void) {
  size_t length = npumm_sim_counters_json(NULL, 0);
  char *text = need(length + 1);
  CHECK_IS(npumm_sim_counters_json(text, length + 1), length);
  CHECK_IS(strlen(text), length);
  return text;
}

#define CHECK_HAS(text, part) CHECK(strstr(text, part), "no %s in %s", part, text)

static void test_counters(void) {
  npumm_sim_reset_counters();
  npumm_sim_select("rk3576");
  rknn_matmul_info info = make_info(2, 4, 64, 32, 0, 0);
  info.iommu_domain_id = 5;
  matmul mm;
  CHECK(open_matmul(&mm, info), "not created");
  bind_all(&mm);
  CHECK_IS(rknn_matmul_run(mm.ctx), 0);
  CHECK_IS(rknn_matmul_set_core_mask(mm.ctx, RKNN_NPU_CORE_1), 0);
  CHECK_IS(rknn_matmul_run(mm.ctx), 0);
  CHECK_IS(rknn_matmul_set_core_mask(mm.ctx, RKNN_NPU_CORE_0_1), -1);
  char *text = json();
  CHECK_HAS(text, "{\"runtime\":\"2.3.2\",\"instructions\":\"");
  CHECK_HAS(text, "\"rknn_matmul_run\":2");
  CHECK_HAS(text, "\"rknn_matmul_set_io_mem\":3");
  CHECK_HAS(text, "\"failures\":{\"rknn_matmul_set_core_mask\":1}");
  CHECK_HAS(text, "\"a_read\":512,\"b_read\":4096,\"c_written\":1024,\"b_packed\":2048");
  CHECK_HAS(text,
            "\"rk3576\":{\"contexts\":1,\"domain_bytes\":{\"5\":16384},"
            "\"macs\":{\"RKNN_INT8_MM_INT8_TO_INT32\":[8192,8192]},\"nanoseconds\":{\"all\":0,\"cores\":[0,0]}}");
  CHECK_HAS(text, "\"contexts\":1,\"memories\":3,\"descriptors\":7,\"memory_bytes\":16384,\"macs\":16384");
  char cut[20];
  size_t length = strlen(text);
  CHECK_IS(npumm_sim_counters_json(cut, sizeof cut), length);
  CHECK(strncmp(cut, text, 19) == 0 && cut[19] == '\0', "cut off");
  CHECK_IS(npumm_sim_counters_json(cut, 0), length);
  free(text);
  npumm_sim_reset_counters();
  text = json();
  CHECK_HAS(text, "\"calls\":{},\"failures\":{}");
  CHECK_HAS(text, "\"memories\":3");
  free(text);
  close_matmul(&mm);
  npumm_sim_select(NULL);

  /* Results that do not fit are counted. */
  CHECK(open_matmul(&mm, make_info(10, 1, 544, 64, 1, 0)), "not created");
  memset(data_of(mm.a), 0x88, mm.io.A.size);
  memset(data_of(mm.b), 0x88, mm.io.B.size);
  bind_all(&mm);
  CHECK_IS(rknn_matmul_run(mm.ctx), 0);
  text = json();
  CHECK_HAS(text, "\"saturations\":64,\"fatal_rows\":0");
  free(text);
  close_matmul(&mm);
}

static void test_trace(void) {
  char path[] = "/tmp/npumm_trace_XXXXXX";
  close(mkstemp(path));
  CHECK_IS(npumm_sim_trace_start(NULL), -5);
  CHECK_IS(npumm_sim_trace_start(""), -5);
  CHECK_IS(npumm_sim_trace_start("/no/such/directory/x"), -1);
  CHECK_IS(npumm_sim_trace_start(path), 0);
  matmul mm;
  CHECK(open_matmul(&mm, make_info(2, 4, 64, 32, 1, 0)), "not created");
  bind_all(&mm);
  CHECK_IS(rknn_matmul_run(mm.ctx), 0);
  npumm_sim_trace_stop();
  CHECK_IS(rknn_matmul_run(mm.ctx), 0); /* not in it */
  close_matmul(&mm);
  npumm_sim_trace_stop();
  char text[8192] = "";
  FILE *file = fopen(path, "r");
  text[fread(text, 1, sizeof text - 1, file)] = '\0';
  fclose(file);
  unlink(path);
  CHECK(strncmp(text, "[\n{", 3) == 0 && strcmp(text + strlen(text) - 4, "}\n]\n") == 0, "not a list: %s", text);
  CHECK_HAS(text, "\"name\":\"rknn_matmul_run\",\"cat\":\"rknn\",\"ph\":\"X\",\"ts\":");
  CHECK_HAS(text, "\"args\":{\"code\":0,\"soc\":\"rk3588\",\"type\":2,\"M\":4,\"K\":64,\"N\":32,\"core\":0}}");
  CHECK_HAS(text, "\"args\":{\"code\":0,\"tensor\":\"B\",\"bytes\":2048}}");
  const char *run = strstr(text, "rknn_matmul_run");
  CHECK(run && !strstr(run + 1, "rknn_matmul_run"), "two runs");
}

static void read_and_remove(const char *path, char *text, size_t size) {
  FILE *file = fopen(path, "r");
  text[fread(text, 1, size - 1, file)] = '\0';
  fclose(file);
  unlink(path);
}

static size_t count(const char *text, const char *word) {
  size_t found = 0;
  for (const char *at = text; (at = strstr(at, word)) != NULL; at++) found++;
  return found;
}

/* A child that ends as programs do, and one that works on, leave the trace to its process. */
static void test_trace_after_fork(void) {
  char path[] = "/tmp/npumm_trace_XXXXXX", other[] = "/tmp/npumm_other_XXXXXX";
  close(mkstemp(path));
  close(mkstemp(other));
  CHECK_IS(npumm_sim_trace_start(path), 0);
  matmul mm;
  CHECK(open_matmul(&mm, make_info(2, 4, 64, 32, 1, 0)), "not created");
  bind_all(&mm);
  fflush(stdout);
  for (int round = 0; round < 2; round++) {
    CHECK_IS(rknn_matmul_run(mm.ctx), 0);
    pid_t child = fork();
    if (child == 0) {
      rknn_matmul_run(mm.ctx);
      if (round == 1) {
        npumm_sim_trace_start(other);
        rknn_matmul_run(mm.ctx);
      }
      exit(0);
    }
    int status = 1;
    CHECK_IS(waitpid(child, &status, 0), child);
    CHECK_IS(status, 0);
  }
  CHECK_IS(rknn_matmul_run(mm.ctx), 0);
  npumm_sim_trace_stop();
  close_matmul(&mm);
  char text[8192];
  read_and_remove(path, text, sizeof text);
  CHECK_IS(count(text, "process_name"), 1);
  CHECK_IS(count(text, "rknn_matmul_run"), 3);
  CHECK_IS(count(text, "\n]\n"), 1);
  CHECK(strcmp(text + strlen(text) - 4, "}\n]\n") == 0, "not a list: %s", text);
  read_and_remove(other, text, sizeof text);
  CHECK_IS(count(text, "process_name"), 1);
  CHECK_IS(count(text, "rknn_matmul_run"), 1);
  CHECK(strcmp(text + strlen(text) - 4, "}\n]\n") == 0, "not a list: %s", text);
}

/* What was written is there, however the process ends. */
static void test_trace_of_a_killed_process(void) {
  char path[] = "/tmp/npumm_trace_XXXXXX", text[8192];
  close(mkstemp(path));
  fflush(stdout);
  pid_t child = fork();
  if (child == 0) {
    npumm_sim_trace_start(path);
    rknn_mem_sync(0, NULL, RKNN_MEMORY_SYNC_TO_DEVICE);
    kill(getpid(), SIGKILL);
  }
  waitpid(child, NULL, 0);
  read_and_remove(path, text, sizeof text);
  CHECK_IS(count(text, "rknn_mem_sync"), 1);

  snprintf(text, sizeof text, "%s.fifo", path); /* a pipe without a reader is refused at once */
  CHECK_IS(mkfifo(text, 0600), 0);
  CHECK_IS(npumm_sim_trace_start(text), -1);
  unlink(text);
}

static void test_reading_settings(void) {
  char text[64] = "x";
  CHECK_IS(npumm_sim_setting("NPUMATMUL_SIM_STRICT", text, sizeof text), 1);
  CHECK(strcmp(text, "0") == 0, "%s", text);
  CHECK_IS(configure("NPUMATMUL_SIM_STRICT", "1"), 0);
  CHECK_IS(configure("NPUMATMUL_SIM_FAULTS", "query:code=-1"), 0);
  CHECK_IS(configure("NPUMATMUL_SIM_FAULTS", "query:code=5"), -1); /* changes nothing */
  CHECK_IS(npumm_sim_setting("NPUMATMUL_SIM_STRICT", text, sizeof text), 1);
  CHECK(strcmp(text, "1") == 0, "%s", text);
  CHECK_IS(npumm_sim_setting("NPUMATMUL_SIM_FAULTS", text, 6), 13);
  CHECK(strcmp(text, "query") == 0, "%s", text);
  CHECK_IS(npumm_sim_setting("NPUMATMUL_SIM_FAULTS", NULL, 0), 13);
  CHECK_IS(configure("NPUMATMUL_SIM_STRICT", NULL), 0);
  CHECK_IS(configure("NPUMATMUL_SIM_FAULTS", ""), 0);
  CHECK_IS(npumm_sim_setting("NPUMATMUL_SIM_FAULTS", text, sizeof text), 0);
  CHECK_IS(npumm_sim_setting("NPUMATMUL_SIM_COLOUR", text, sizeof text), (size_t)-1);
  CHECK_IS(npumm_sim_setting(NULL, text, sizeof text), (size_t)-1);
}

int main(int argc, char **argv) {
  if (argc > 1) return child_create();
  start_log();
  test_settings();
  test_environment(argv[0]);
  test_codes();
  test_hang();
  test_lost_device();
  test_driver();
  test_counters();
  test_trace();
  test_trace_after_fork();
  test_trace_of_a_killed_process();
  test_reading_settings();
  return report("test_control");
}
