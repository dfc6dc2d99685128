/*
 * The vendor's functions as the simulator has them, without what happens around every call. exports.c gives them the
 * names, prototypes and presence that they have in each version.
 */
#ifndef SIM_API_H
#define SIM_API_H

#include "rknn_abi.h"

/* info: as many bytes are read as the version's struct has. */
int sim_matmul_create(rknn_matmul_ctx *ctx, const void *info, rknn_matmul_io_attr *io_attr);
int sim_matmul_create_dynamic(rknn_matmul_ctx *ctx, const void *info, int shape_num, const rknn_matmul_shape *shapes,
                              rknn_matmul_io_attr *io_attrs);
int sim_matmul_set_dynamic_shape(rknn_matmul_ctx ctx, const rknn_matmul_shape *shape);
int sim_matmul_set_io_mem(rknn_matmul_ctx ctx, rknn_tensor_mem *mem, const rknn_matmul_tensor_attr *attr);
int sim_matmul_set_core_mask(rknn_matmul_ctx ctx, rknn_core_mask core_mask);
int sim_matmul_set_quant_params(rknn_matmul_ctx ctx, const rknn_quant_params *params);
int sim_matmul_get_quant_params(rknn_matmul_ctx ctx, const rknn_quant_params *params, float *scale);
int sim_matmul_run(rknn_matmul_ctx ctx);
int sim_matmul_destroy(rknn_matmul_ctx ctx);

/* Packs a normal B. tile_n and tile_k: 0, or what the caller takes the tile to be. */
int sim_pack_b_for(rknn_matmul_type type, const void *in, void *out, int K, int N, int tile_n, int tile_k);
int sim_pack_b_by_info(const rknn_matmul_info *info, const void *in, void *out, int K, int N);

rknn_tensor_mem *sim_create_mem(rknn_context ctx, uint32_t size);
rknn_tensor_mem *sim_create_mem2(rknn_context ctx, uint64_t size, uint64_t alloc_flags);
rknn_tensor_mem *sim_create_mem_from_fd(rknn_context ctx, int32_t fd, void *virt_addr, uint32_t size, int32_t offset);
rknn_tensor_mem *sim_create_mem_from_phys(rknn_context ctx, uint64_t phys_addr, void *virt_addr, uint32_t size);
int sim_destroy_mem(rknn_context ctx, rknn_tensor_mem *mem);
int sim_mem_sync(rknn_context ctx, rknn_tensor_mem *mem, rknn_mem_sync_mode mode);
int sim_query(rknn_context ctx, rknn_query_cmd cmd, void *info, uint32_t size);

#endif
