#include "file.h"

#include <sys/stat.h>
#include <unistd.h>

bool sim_file_identify(int fd, sim_file_id *id) {
  struct stat status;
  if (fstat(fd, &status)) return false;
  *id = (sim_file_id){.device = status.st_dev, .inode = status.st_ino};
  return true;
}

bool sim_file_same(sim_file_id first, sim_file_id second) {
  return first.inode != 0 && first.inode == second.inode && first.device == second.device;
}

void sim_file_close(int fd, sim_file_id id) {
  sim_file_id now;
  if (sim_file_identify(fd, &now) && sim_file_same(now, id)) close(fd);
}
