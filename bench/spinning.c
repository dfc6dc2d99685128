/* Threads that spin until they are told not to, as OpenMP's do between parallel regions. */
#include <pthread.h>
#include <stdatomic.h>

enum { MOST = 16 };

static atomic_int spinning;
static pthread_t threads[MOST];
static int started;

static void *spin(void *argument) {
  (void)argument;
  while (atomic_load_explicit(&spinning, memory_order_relaxed)) continue;
  return NULL;
}

void spin_start(int count) {
  atomic_store(&spinning, 1);
  for (started = 0; started < count && started < MOST; started++) {
    if (pthread_create(&threads[started], NULL, spin, NULL)) break;
  }
}

void spin_stop(void) {
  atomic_store(&spinning, 0);
  while (started > 0) pthread_join(threads[--started], NULL);
}
