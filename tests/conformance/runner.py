"""Runs recorded calls against one library of the simulator, through ctypes structs of its own.

    python runner.py LIBRARY < requests

Each line of standard input is a JSON request, each line of standard output its answer. After each, the line ``#`` goes
to standard error, so that the caller can tell which log lines belong to which request. Requests:

    {"do": "create", "soc", "type", "M", "K", "N", "B_layout", "AC_layout"}  -> {"ret", "A", "B", "C"}
    {"do": "multiply", ... as create ..., "a": hex, "b": hex}                -> {"ret", "c": hex}
    {"do": "pack", "soc", "type", "K", "N", "b": hex}                        -> {"ret", "packed": hex}
"""

from __future__ import annotations

import ctypes as C
import json
import os
import sys


class Info24(C.Structure):
    """rknn_matmul_info of 1.5.2 and 1.6.0 (facts 1.2)."""

    _fields_ = [(name, C.c_int32) for name in ("M", "K", "N", "type", "B_layout", "AC_layout")]


class Info64(C.Structure):
    """rknn_matmul_info from 2.0.0b0 on."""

    _fields_ = [
        *((name, C.c_int32) for name in ("M", "K", "N", "type")),
        *((name, C.c_int16) for name in ("B_layout", "B_quant_type", "AC_layout", "AC_quant_type")),
        ("iommu_domain_id", C.c_int32),
        ("group_size", C.c_int16),
        ("reserved", C.c_int8 * 34),
    ]


class Attr(C.Structure):
    _fields_ = [
        ("name", C.c_char * 256),
        ("n_dims", C.c_uint32),
        ("dims", C.c_uint32 * 16),
        ("size", C.c_uint32),
        ("type", C.c_int32),
    ]


class IoAttr(C.Structure):
    _fields_ = [("A", Attr), ("B", Attr), ("C", Attr)]


class Memory(C.Structure):
    _fields_ = [
        ("virt_addr", C.c_void_p),
        ("phys_addr", C.c_uint64),
        ("fd", C.c_int32),
        ("offset", C.c_int32),
        ("size", C.c_uint32),
        ("flags", C.c_uint32),
        ("priv_data", C.c_void_p),
    ]


class Runtime:
    def __init__(self, path: str) -> None:
        self.library = C.CDLL(path)
        self.info = Info24 if "_1." in path else Info64
        self.library.rknn_create_mem.restype = C.POINTER(Memory)
        self.library.rknn_create_mem.argtypes = (C.c_uint64, C.c_uint32)
        self.library.rknn_destroy_mem.argtypes = (C.c_uint64, C.POINTER(Memory))
        self.library.rknn_matmul_set_io_mem.argtypes = (C.c_uint64, C.POINTER(Memory), C.POINTER(Attr))
        self.library.rknn_matmul_run.argtypes = (C.c_uint64,)
        self.library.rknn_matmul_destroy.argtypes = (C.c_uint64,)

    def make_info(self, request: dict) -> C.Structure:
        info = self.info()
        for name in ("M", "K", "N", "type", "B_layout", "AC_layout"):
            setattr(info, name, request.get(name, 1))
        return info

    def open(self, request: dict) -> tuple[int, C.c_uint64, IoAttr]:
        assert self.library.npumm_sim_select(request["soc"].encode()) == 0
        ctx, io = C.c_uint64(), IoAttr()
        ret = self.library.rknn_matmul_create(C.byref(ctx), C.byref(self.make_info(request)), C.byref(io))
        return ret, ctx, io

    def create(self, request: dict) -> dict:
        ret, ctx, io = self.open(request)
        answer = {"ret": ret}
        if ret == 0:
            for attr in (io.A, io.B, io.C):
                dims = list(attr.dims[: attr.n_dims])
                answer[attr.name.decode()] = {"dims": dims, "size": attr.size, "type": attr.type}
            assert self.library.rknn_matmul_destroy(ctx) == 0
        return answer

    def multiply(self, request: dict) -> dict:
        ret, ctx, io = self.open(request)
        assert ret == 0, ret
        memories = [self.library.rknn_create_mem(ctx, attr.size) for attr in (io.A, io.B, io.C)]
        for memory, data in zip(memories, (request["a"], request["b"]), strict=False):
            raw = bytes.fromhex(data)
            assert len(raw) <= memory.contents.size
            C.memmove(memory.contents.virt_addr, raw, len(raw))
        for memory, attr in zip(memories, (io.A, io.B, io.C), strict=True):
            assert self.library.rknn_matmul_set_io_mem(ctx, memory, C.byref(attr)) == 0
        ret = self.library.rknn_matmul_run(ctx)
        result = C.string_at(memories[2].contents.virt_addr, io.C.size).hex()
        for memory in memories:
            assert self.library.rknn_destroy_mem(ctx, memory) == 0
        assert self.library.rknn_matmul_destroy(ctx) == 0
        return {"ret": ret, "c": result}

    def pack(self, request: dict) -> dict:
        assert self.library.npumm_sim_select(request["soc"].encode()) == 0
        raw = bytes.fromhex(request["b"])
        packed = C.create_string_buffer(len(raw))
        ret = self.library.rknn_B_normal_layout_to_native_layout(
            C.create_string_buffer(raw, len(raw)), packed, request["K"], request["N"], C.byref(self.make_info(request))
        )
        return {"ret": ret, "packed": packed.raw.hex()}


def main() -> None:
    runtime = Runtime(sys.argv[1])
    for line in sys.stdin:
        request = json.loads(line)
        print(json.dumps(getattr(runtime, request["do"])(request)))
        os.write(2, b"#\n")


if __name__ == "__main__":
    main()
