/* A file into memory by several threads, each of which sums up what it has read while that is in a cache. */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <unistd.h>

#include "checksum.h"
#include "npumatmul_kernels.h"

/* Pieces fit into a cache of the second level. */
enum { PIECE = 1 << 18, THREADS_MOST = 16 };

typedef struct {
  npumm_crc *crc;
  int fd;
  int64_t offset, bytes;
  uint8_t *memory;
  atomic_int_fast64_t next; /* where the piece begins that nobody took yet */
} reading;

typedef struct {
  reading *of;
  pthread_t thread;
  uint32_t sum; /* of its pieces: each moved on by as many bytes as are behind it */
  int64_t end;  /* up to where nothing of its own failed */
  int error;    /* errno of what failed there; 0 where the file ends */
} reader;

/* Bytes that there are of a piece, and errno where reading the rest failed. */
static int64_t read_piece(const reading *of, int64_t start, int64_t bytes, int *error) {
  int64_t done = 0;
  while (done < bytes) {
    const ssize_t got = pread(of->fd, of->memory + start + done, (size_t)(bytes - done), of->offset + start + done);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) *error = errno;
    if (got <= 0) break;
    done += got;
  }
  return done;
}

/* Pieces are taken in their order, so those before one that fails are read to their ends whatever becomes of it. */
static void *read_pieces(void *argument) {
  reader *self = argument;
  reading *of = self->of;
  for (int64_t start; (start = atomic_fetch_add(&of->next, PIECE)) < of->bytes;) {
    const int64_t wanted = of->bytes - start < PIECE ? of->bytes - start : PIECE;
    const int64_t got = read_piece(of, start, wanted, &self->error);
    if (got < wanted) {
      self->end = start + got;
      atomic_store(&of->next, of->bytes);
      break;
    }
    const uint32_t checksum = ~of->crc(~0u, of->memory + start, (size_t)got);
    self->sum ^= npumm_crc_moved(checksum, of->bytes - start - got);
  }
  return NULL;
}

/* Signals are for the threads of the program: those that are started here block them all. */
static int32_t start(reader *readers, int32_t wanted) {
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  int32_t started = 0;
  while (started < wanted && !pthread_create(&readers[started].thread, NULL, read_pieces, &readers[started])) started++;
  pthread_sigmask(SIG_SETMASK, &before, NULL);
  return started;
}

int64_t npumm_read_summed(int32_t set, int fd, int64_t offset, void *memory, int64_t bytes, int32_t threads,
                          uint32_t *checksum, int *error) {
  npumm_crc *crc = npumm_crc_of(set);
  if (!crc || offset < 0 || bytes < 0 || (!memory && bytes) || threads < 1 || !checksum || !error) {
    return NPUMM_BAD_ARGUMENT;
  }
  const int64_t pieces = bytes / PIECE + (bytes % PIECE != 0);
  int32_t count = threads < THREADS_MOST ? threads : THREADS_MOST;
  if (count > pieces) count = pieces ? (int32_t)pieces : 1;
  reading of = {.crc = crc, .fd = fd, .offset = offset, .bytes = bytes, .memory = memory};
  reader readers[THREADS_MOST] = {{.of = &of, .end = bytes}};
  for (int32_t i = 1; i < count; i++) readers[i] = readers[0];

  const int32_t others = start(readers + 1, count - 1);
  read_pieces(readers);
  for (int32_t i = 1; i <= others; i++) pthread_join(readers[i].thread, NULL);

  reader first = readers[0]; /* of those that failed; the sum is of all */
  for (int32_t i = 1; i <= others; i++) {
    const uint32_t sum = first.sum ^ readers[i].sum;
    if (readers[i].end < first.end) first = readers[i];
    first.sum = sum;
  }
  *error = first.error;
  if (first.end == bytes) *checksum = npumm_crc_moved(*checksum, bytes) ^ first.sum;
  return first.end;
}
