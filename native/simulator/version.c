/* Which version this library is; compiled once per version, like exports.c. */
#include "runtimes.h"

#include <stddef.h>

#ifdef SIM_VERSION_NAME
const char *const sim_library_version = SIM_VERSION_NAME;
#else
const char *const sim_library_version = NULL;
#endif
