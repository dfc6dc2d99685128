/*
 * Files that a descriptor may refer to. A caller may close any descriptor, ours too (programs that become daemons do), and
 * its number may be another file's by then.
 */
#ifndef SIM_FILE_H
#define SIM_FILE_H

#include <stdbool.h>
#include <sys/types.h>

/* Which file it is, however often its descriptor was duplicated. */
typedef struct {
  dev_t device;
  ino_t inode; /* 0: none */
} sim_file_id;

/* False with errno set when fd is none. */
bool sim_file_identify(int fd, sim_file_id *id);

bool sim_file_same(sim_file_id first, sim_file_id second);

/* Closes fd, unless it is another file's by now. */
void sim_file_close(int fd, sim_file_id id);

#endif
