/*
 * Descriptors and files in a program that is not ours. It may have closed the standard three, and whoever prints there would
 * print into a file that got such a number. It may close any descriptor (programs that become daemons do), whose number
 * may be another file's by then: what is kept is kept with its file's identity, and looked at before it is used. It may have limits on sizes of files, which kill by a signal.
 */
#ifndef SIM_FILE_H
#define SIM_FILE_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

/* Which file it is, however often its descriptor was duplicated. */
typedef struct {
  dev_t device;
  ino_t inode; /* 0: none */
} sim_file_id;

/* False with errno set when fd is none. */
bool sim_file_identify(int fd, sim_file_id *id);

bool sim_file_same(sim_file_id first, sim_file_id second);

/* Descriptors above the standard three that no program inherits; -1 with errno set. */
int sim_file_memory(const char *name); /* an anonymous file, which may be sealed */
int sim_file_open(const char *path);   /* to be written, made where it is not there; not a pipe that nobody reads */
int sim_file_duplicate(int fd);

/* Whether fd still is that file; false with errno EBADF where the program closed it, or gave its number to another one. */
bool sim_file_is(int fd, sim_file_id id);

/* Closes fd, unless it is another file's by now. */
void sim_file_close(int fd, sim_file_id id);

/* False with errno set; no signal is sent. at: where to write, or -1 for where the last write ended. */
bool sim_file_resize(int fd, size_t bytes);
bool sim_file_write(int fd, const void *from, size_t bytes, off_t at);

#endif
