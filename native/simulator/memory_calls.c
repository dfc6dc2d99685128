/*
 * rknn_create_mem and its kin: memories from create to destroy.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "api.h"
#include "clock.h"
#include "log.h"
#include "memory.h"
#include "registry.h"
#include "settings.h"
#include "trace.h"

#define ALLOC_FLAGS_KNOWN                                                                          \
  (RKNN_FLAG_MEMORY_CACHEABLE | RKNN_FLAG_MEMORY_NON_CACHEABLE | RKNN_FLAG_MEMORY_TRY_ALLOC_SRAM | \
   RKNN_MEM_FLAG_ALLOC_NO_CONTEXT)

/* Takes over one hold of the backing, also on failure. */
static rknn_tensor_mem *add_memory(sim_backing *backing, int domain, bool owns_fd, rknn_tensor_mem shown) {
  sim_memory *memory = calloc(1, sizeof *memory);
  if (!memory) {
    sim_log_error("failed to allocate handle, ret: -1, errno: 12, errstr: Cannot allocate memory");
    sim_backing_release(backing);
    return NULL;
  }
  memory->shown = shown;
  memory->backing = backing;
  memory->virt_addr = shown.virt_addr;
  memory->domain = domain;
  memory->owns_fd = owns_fd;
  atomic_init(&memory->holders, 1);
  atomic_init(&memory->destroyed, false);
  sim_registry_add_memory(memory);
  return &memory->shown;
}

static rknn_tensor_mem *allocate(rknn_context ctx, uint64_t size, bool cacheable, const char *function) {
  if (size == 0 || size > UINT32_MAX) {
    sim_log_error("%s, invalid size: %llu", function, (unsigned long long)size);
    return NULL;
  }
  sim_place place;
  if (!sim_registry_place(ctx, &place)) {
    sim_log_error("%s, simulator: 0x%llx is no context", function, (unsigned long long)ctx);
    return NULL;
  }
  sim_trace_note("\"bytes\":%llu,\"domain\":%d", (unsigned long long)size, place.domain);
  sim_settings settings = sim_current_settings();
  sim_backing_kind kind = settings.strict && cacheable ? BACKING_STRICT : BACKING_SHARED;
  sim_backing *backing = sim_backing_allocate(place.chip, place.domain, settings.domain_bytes, size, kind);
  if (!backing && (errno == EMFILE || errno == ENFILE)) {
    sim_log_error("failed to convert handle(1) to fd, ret: -1, errno: %d, errstr: %s", errno,
                  errno == EMFILE ? "Too many open files" : "Too many open files in system");
    return NULL;
  }
  if (!backing) {
    if (errno == EFBIG) {
      sim_log_error(
          "%s, simulator: memory is a file here, and %llu bytes are more than a file may have: raise the limit "
          "(ulimit -f)",
          function, (unsigned long long)size);
    }
    sim_log_error("failed to allocate handle, ret: -1, errno: 12, errstr: Cannot allocate memory");
    return NULL;
  }
  return add_memory(backing, place.domain, true,
                    (rknn_tensor_mem){
                        .virt_addr = backing->base,
                        .phys_addr = backing->iova,
                        .fd = backing->fd,
                        .offset = 0,
                        .size = (uint32_t)size, /* as asked, although whole pages are mapped */
                        .flags = RKNN_TENSOR_MEMORY_FLAGS_ALLOC_INSIDE,
                        .priv_data = backing->base,
                    });
}

rknn_tensor_mem *sim_create_mem(rknn_context ctx, uint32_t size) {
  return allocate(ctx, size, true, "rknn_create_mem");
}

/* There is no SRAM, and TRY_ALLOC_SRAM asks for no more than a try. */
rknn_tensor_mem *sim_create_mem2(rknn_context ctx, uint64_t size, uint64_t alloc_flags) {
  if (alloc_flags & ~(uint64_t)ALLOC_FLAGS_KNOWN) {
    sim_log_error("rknn_create_mem2, simulator: unknown flags in 0x%llx", (unsigned long long)alloc_flags);
    return NULL;
  }
  /* Documented: a context may be missing only with NO_CONTEXT (facts 7.1). */
  if (ctx == 0 && !(alloc_flags & RKNN_MEM_FLAG_ALLOC_NO_CONTEXT)) {
    sim_log_error("rknn_create_mem2, simulator: no context and no RKNN_MEM_FLAG_ALLOC_NO_CONTEXT");
    return NULL;
  }
  return allocate(ctx, size, !(alloc_flags & RKNN_FLAG_MEMORY_NON_CACHEABLE), "rknn_create_mem2");
}

/* The memory behind a descriptor with one more holder, or NULL with log lines. */
static sim_backing *backing_of(int fd, const sim_place *place, const sim_settings *settings) {
  sim_backing *backing = sim_backing_of_fd(fd);
  if (!backing && !settings->foreign) {
    sim_log_error("failed to convert fd(%d) to handle, ret: -1, errno: 22, errstr: Invalid argument", fd);
    sim_log_error(
        "rknn_create_mem_from_fd, simulator: fd %d is no memory of this library, and NPUMATMUL_SIM_FOREIGN is "
        "refuse",
        fd);
    return NULL;
  }
  if (!backing) backing = sim_backing_wrap(place->chip, place->domain, settings->domain_bytes, fd);
  if (backing) return backing;
  int error = errno;
  sim_log_error("failed to convert fd(%d) to handle, ret: -1, errno: %d, errstr: %s", fd, error, strerror(error));
  sim_log_error("rknn_create_mem_from_fd, simulator: fd %d %s", fd,
                error == EBADF    ? "is not open for reading"
                : error == EINVAL ? "is nothing that can be mapped, or has no size"
                : error == ENOMEM ? "does not fit into what is left of the iommu domain"
                                  : "needs a descriptor more: raise the limit (ulimit -n)");
  return NULL;
}

/* Whether memory can be wrapped for a context there. */
static bool can_be_wrapped(const sim_backing *backing, const sim_place *place, int fd, uint32_t size, int32_t offset) {
  if (place->chip != backing->chip) {
    sim_log_error("rknn_create_mem_from_fd, simulator: fd %d is memory of %s, the context is on %s", fd,
                  sim_chip_at(backing->chip)->soc, sim_chip_at(place->chip)->soc);
    return false;
  }
  /* Whether it would be mapped into a second domain is not documented (Q17): one mapping, one domain. */
  if (place->domain != backing->domain) {
    sim_log_error("rknn_create_mem_from_fd, simulator: fd %d is memory of iommu domain %d, the context is in %d", fd,
                  backing->domain, place->domain);
    return false;
  }
  if (offset < 0 || (uint64_t)offset + size > backing->limit) {
    sim_log_error("rknn_create_mem_from_fd, simulator: offset %d and size %u reach outside of the fd's %zu bytes",
                  offset, size, backing->limit);
    return false;
  }
  return true;
}

/* virt_addr is the start of the fd's memory; the data begins offset bytes later. It may be a mapping of the caller's
 * own: the simulator reaches the same pages in its own way. */
rknn_tensor_mem *sim_create_mem_from_fd(rknn_context ctx, int32_t fd, void *virt_addr, uint32_t size, int32_t offset) {
  if (size == 0) {
    sim_log_error("rknn_create_mem_from_fd, invalid size: 0");
    return NULL;
  }
  sim_place place;
  if (!sim_registry_place(ctx, &place)) {
    sim_log_error("rknn_create_mem_from_fd, simulator: 0x%llx is no context", (unsigned long long)ctx);
    return NULL;
  }
  sim_settings settings = sim_current_settings();
  sim_backing *backing = backing_of(fd, &place, &settings);
  if (!backing) return NULL;
  if (!can_be_wrapped(backing, &place, fd, size, offset)) {
    sim_backing_release(backing);
    return NULL;
  }
  return add_memory(backing, place.domain, false,
                    (rknn_tensor_mem){
                        .virt_addr = virt_addr,
                        .phys_addr = backing->iova + (uint32_t)offset,
                        .fd = fd,
                        .offset = offset,
                        .size = size,
                        .flags = RKNN_TENSOR_MEMORY_FLAGS_FROM_FD,
                        .priv_data = NULL,
                    });
}

rknn_tensor_mem *sim_create_mem_from_phys(rknn_context ctx, uint64_t phys_addr, void *virt_addr, uint32_t size) {
  (void)ctx, (void)phys_addr, (void)virt_addr, (void)size;
  sim_log_error("rknn_create_mem_from_phys, simulator: there are no physical addresses to wrap");
  return NULL;
}

/*
 * Any living context, or 0, may be named (facts 7.1). Naming a destroyed one crashed runtime 1.6.0; here it is refused
 * and the memory stays, so that the mistake is seen.
 */
int sim_destroy_mem(rknn_context ctx, rknn_tensor_mem *mem) {
  if (!mem) return RKNN_ERR_PARAM_INVALID;
  sim_place place;
  if (!sim_registry_place(ctx, &place)) {
    sim_log_error("rknn_destroy_mem, simulator: 0x%llx is no context", (unsigned long long)ctx);
    return RKNN_ERR_PARAM_INVALID;
  }
  sim_memory *memory = sim_registry_remove_memory(mem);
  if (!memory) {
    sim_log_error("rknn_destroy_mem, simulator: mem was not made by this library, or is destroyed already");
    return RKNN_ERR_PARAM_INVALID;
  }
  atomic_store(&memory->destroyed, true);
  /* The descriptor belonged to the memory that made it. Slices keep the pages and lose the number, as on a board. */
  if (memory->owns_fd) sim_backing_close(memory->backing);
  sim_memory_release(memory);
  return RKNN_SUCC;
}

/* Without strict memory there is nothing to copy: CPU and simulated NPU share their caches. */
int sim_mem_sync(rknn_context ctx, rknn_tensor_mem *mem, rknn_mem_sync_mode mode) {
  sim_place place;
  if (!sim_registry_place(ctx, &place)) return RKNN_ERR_CTX_INVALID;
  sim_memory *memory = mem ? sim_registry_hold_memory(mem) : NULL;
  if (!memory) {
    sim_log_error("rknn_mem_sync, invalid mem");
    return RKNN_ERR_PARAM_INVALID;
  }
  bool known = (unsigned)mode >= RKNN_MEMORY_SYNC_TO_DEVICE && (unsigned)mode <= RKNN_MEMORY_SYNC_BIDIRECTIONAL;
  if (known && mode & RKNN_MEMORY_SYNC_TO_DEVICE) {
    sim_memory_to_device(memory, 0, memory->backing->bytes);
    sim_clock_sync(place.chip, place.core_mask);
  }
  if (known && mode & RKNN_MEMORY_SYNC_FROM_DEVICE) sim_memory_from_device(memory, 0, memory->backing->bytes);
  sim_memory_release(memory);
  if (known) return RKNN_SUCC;
  sim_log_error("rknn_mem_sync, simulator: invalid mode: %d", (int)mode);
  return RKNN_ERR_PARAM_INVALID;
}
