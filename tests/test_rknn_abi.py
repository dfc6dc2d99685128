"""The ctypes structs against a C program compiled from our header, and both against the documented numbers."""

from __future__ import annotations

import ctypes
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from compiling import INCLUDE, compile_c, run

from npumatmul.rknn import constants, runtime, structs

C_NAMES = {
    "rknn_matmul_info": structs.MatmulInfo,
    "rknn_matmul_tensor_attr": structs.MatmulTensorAttr,
    "rknn_matmul_io_attr": structs.MatmulIoAttr,
    "rknn_matmul_shape": structs.MatmulShape,
    "rknn_quant_params": structs.QuantParams,
    "rknn_tensor_mem": structs.TensorMem,
    "rknn_sdk_version": structs.SdkVersion,
    "rknn_mem_size": structs.MemSize,
    "rknn_input_output_num": structs.InputOutputNum,
    "rknn_perf_run": structs.PerfRun,
    "rknn_perf_detail": structs.PerfDetail,
}

ENUMS = {
    "rknn_tensor_type": (constants.TensorType, "RKNN_TENSOR_"),
    "rknn_matmul_type": (constants.MatmulTypeCode, "RKNN_"),
    "rknn_matmul_quant_type": (constants.QuantType, "RKNN_QUANT_TYPE_"),
    "rknn_matmul_layout": (constants.MatmulLayout, "RKNN_MM_LAYOUT_"),
    "rknn_core_mask": (constants.CoreMask, "RKNN_NPU_"),
    "rknn_mem_sync_mode": (constants.MemSyncMode, "RKNN_MEMORY_SYNC_"),
    "rknn_tensor_mem_flags": (constants.TensorMemFlags, "RKNN_TENSOR_MEMORY_FLAGS_"),
    "rknn_query_cmd": (constants.QueryCmd, "RKNN_QUERY_"),
}

# (struct, size, alignment) and offsets as documented for LP64 (facts 1.2, 1.3)
DOCUMENTED_SIZES = {
    "rknn_matmul_info": (64, 4),
    "rknn_matmul_tensor_attr": (332, 4),
    "rknn_matmul_io_attr": (996, 4),
    "rknn_matmul_shape": (12, 4),
    "rknn_quant_params": (288, 8),
    "rknn_tensor_mem": (40, 8),
    "rknn_sdk_version": (512, 1),
    "rknn_mem_size": (64, 8),
    "rknn_input_output_num": (8, 4),
    "rknn_perf_run": (8, 8),
    "rknn_perf_detail": (16, 8),
}
DOCUMENTED_OFFSETS = {
    "rknn_matmul_info": {
        "M": 0, "K": 4, "N": 8, "type": 12, "B_layout": 16, "B_quant_type": 18, "AC_layout": 20,
        "AC_quant_type": 22, "iommu_domain_id": 24, "group_size": 28, "reserved": 30,
    },
    "rknn_matmul_tensor_attr": {"name": 0, "n_dims": 256, "dims": 260, "size": 324, "type": 328},
    "rknn_matmul_io_attr": {"A": 0, "B": 332, "C": 664},
    "rknn_matmul_shape": {"M": 0, "K": 4, "N": 8},
    "rknn_quant_params": {"name": 0, "scale": 256, "scale_len": 264, "zp": 272, "zp_len": 280},
    "rknn_tensor_mem": {
        "virt_addr": 0, "phys_addr": 8, "fd": 16, "offset": 20, "size": 24, "flags": 28, "priv_data": 32,
    },
    "rknn_mem_size": {
        "total_weight_size": 0, "total_internal_size": 4, "total_dma_allocated_size": 8, "total_sram_size": 16,
        "free_sram_size": 20, "reserved": 24,
    },
}  # fmt: skip


# 32-bit ARM (facts 1.3): what differs is pointers, and the context.
DOCUMENTED_ARMHF: dict[str, tuple[int, dict[str, int]]] = {
    "rknn_tensor_mem": (
        40,
        {"virt_addr": 0, "phys_addr": 8, "fd": 16, "offset": 20, "size": 24, "flags": 28, "priv_data": 32},
    ),
    "rknn_quant_params": (272, {"name": 0, "scale": 256, "scale_len": 260, "zp": 264, "zp_len": 268}),
    **{
        name: (DOCUMENTED_SIZES[name][0], DOCUMENTED_OFFSETS.get(name, {}))
        for name in (
            "rknn_matmul_info", "rknn_matmul_tensor_attr", "rknn_matmul_io_attr", "rknn_matmul_shape",
            "rknn_sdk_version", "rknn_mem_size", "rknn_input_output_num", "rknn_perf_run",
        )
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, int]]:
    """Sizes, alignments and offsets as a C compiler sees them."""
    lines = []
    for name, struct in C_NAMES.items():
        lines.append(
            f'printf("\\"{name}\\": {{\\"sizeof\\": %zu, \\"alignof\\": %zu", sizeof({name}), _Alignof({name}));'
        )
        lines += [f'printf(", \\"{f[0]}\\": %zu", offsetof({name}, {f[0]}));' for f in struct._fields_]
        lines.append('printf("}, ");')
    program = "\n".join(lines)
    folder = tmp_path_factory.mktemp("abi")
    source = folder / "abi.c"
    source.write_text(
        '#include <stddef.h>\n#include <stdio.h>\n#include "rknn_abi.h"\n'
        f'int main(void) {{ printf("{{"); {program} printf("\\"end\\": {{}}}}"); return 0; }}\n'
    )
    return json.loads(run(compile_c(folder / "abi", [source])))


@pytest.mark.parametrize("name", C_NAMES)
def test_ctypes_agrees_with_the_compiler(name: str, compiled: dict[str, dict[str, int]]) -> None:
    struct, seen = C_NAMES[name], compiled[name]
    assert ctypes.sizeof(struct) == seen["sizeof"]
    assert ctypes.alignment(struct) == seen["alignof"]
    assert {f[0]: getattr(struct, f[0]).offset for f in struct._fields_} == {
        field: offset for field, offset in seen.items() if field not in ("sizeof", "alignof")
    }


@pytest.mark.parametrize("name", C_NAMES)
def test_the_compiler_agrees_with_the_documents(name: str, compiled: dict[str, dict[str, int]]) -> None:
    assert ctypes.sizeof(ctypes.c_void_p) == 8, "the documented numbers are those of 64-bit machines"
    seen = compiled[name]
    assert (seen["sizeof"], seen["alignof"]) == DOCUMENTED_SIZES[name]
    for field, offset in DOCUMENTED_OFFSETS.get(name, {}).items():
        assert seen[field] == offset, field


@pytest.mark.parametrize("name", C_NAMES)
def test_the_computed_layout_is_that_of_this_machine(name: str) -> None:
    struct = C_NAMES[name]
    assert structs.layout_on(struct, ctypes.sizeof(ctypes.c_void_p)) == structs.StructLayout(
        ctypes.sizeof(struct),
        ctypes.alignment(struct),
        {f[0]: getattr(struct, f[0]).offset for f in struct._fields_},
    )


@pytest.mark.parametrize("name", DOCUMENTED_ARMHF)
def test_the_computed_layout_of_32_bit_arm_is_the_documented_one(name: str) -> None:
    size, offsets = DOCUMENTED_ARMHF[name]
    layout = structs.layout_on(C_NAMES[name], 4)
    assert layout.size == size
    assert {field: layout.offsets[field] for field in offsets} == offsets


def test_the_computed_layout_of_32_bit_arm_is_that_of_its_compiler(tmp_path: Path) -> None:
    compiler = shutil.which("arm-linux-gnueabihf-gcc")
    if compiler is None:
        pytest.skip("arm-linux-gnueabihf-gcc is not installed; the documented numbers are compared above")
    checks = ["sizeof(rknn_context) == 4", "sizeof(rknn_matmul_type) == 4"]
    for name, struct in C_NAMES.items():
        layout = structs.layout_on(struct, 4)
        checks += [f"sizeof({name}) == {layout.size}", f"_Alignof({name}) == {layout.alignment}"]
        checks += [f"offsetof({name}, {field}) == {offset}" for field, offset in layout.offsets.items()]
    source = tmp_path / "arm.c"
    source.write_text(
        '#include <stddef.h>\n#include "rknn_abi.h"\n'
        + "".join(f'_Static_assert({check}, "{check}");\n' for check in checks)
    )
    done = subprocess.run(
        [compiler, "-std=c17", f"-I{INCLUDE}", "-fsyntax-only", str(source)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("machine", "pointer", "expected"),
    [
        ("aarch64", 8, 8),
        ("x86_64", 8, 8),
        ("armv7l", 4, 4),
        ("armv8l", 4, 4),
        ("aarch64", 4, 4),  # a 32-bit program under a 64-bit kernel
        ("i686", 4, 8),
        ("x86_64", 4, 8),
    ],
)
def test_the_context_is_narrow_in_32_bit_arm_programs_only(machine: str, pointer: int, expected: int) -> None:
    assert structs.context_bytes(machine, pointer) == expected


def _header() -> str:
    return (INCLUDE / "rknn_abi.h").read_text()


@pytest.mark.parametrize("name", ENUMS)
def test_enums_have_the_headers_names_and_values(name: str) -> None:
    body = next(b for b, n in re.findall(r"typedef enum \{(.*?)\} (\w+);", _header(), re.S) if n == name)
    members, prefix = ENUMS[name]
    in_header = {key: int(value, 0) for key, value in re.findall(r"(\w+) = (\w+)", body)}
    in_header.pop("RKNN_TENSOR_TYPE_MAX", None)
    assert {prefix + key: int(value) for key, value in members.__members__.items()} == in_header


def test_allocation_flags_and_error_codes_have_the_headers_values() -> None:
    header = _header()
    for key, value in constants.MemAllocFlags.__members__.items():
        stem = "RKNN_FLAG_MEMORY_FLAGS_" if key == "DEFAULT" else "RKNN_FLAG_MEMORY_"
        assert re.search(rf"{stem}{key} = {int(value)}\b", header)
    codes = {key: int(value) for key, value in re.findall(r"#define RKNN_((?:SUCC|ERR_)\w*) \(?(-?\d+)\)?", header)}
    assert codes == {key: int(value) for key, value in constants.ErrorCode.__members__.items()}


def test_every_function_of_the_header_is_bound_with_its_number_of_arguments() -> None:
    text = re.sub(r"/\*.*?\*/", "", _header(), flags=re.S)
    declared = {
        name: list(arguments.split(","))
        for name, arguments in re.findall(r"^(?:int|rknn_tensor_mem \*)\s*(rknn_\w+)\(([^)]*)\);", text, re.M)
    }
    # 2.0.0b0's name of the dynamic create is no longer in the header
    assert set(runtime.FUNCTIONS) - {"rknn_matmul_create_dyn_shape"} == set(declared)
    for name, arguments in declared.items():
        assert len(runtime.FUNCTIONS[name][1]) == len(arguments), name


def test_the_structs_of_models_have_the_documented_sizes(tmp_path: Path) -> None:
    """Facts 1.3: nothing of them is used here, but programs that use both kinds of calls include them."""
    sizes = {
        "rknn_tensor_attr": (376, 4), "rknn_init_extend": (136, 8), "rknn_run_extend": (24, 8),
        "rknn_custom_string": (1024, 1), "rknn_input_range": (33040, 4), "rknn_input": (32, 8), "rknn_output": (24, 8),
    }  # fmt: skip
    checks = [f"sizeof({name}) == {size} && _Alignof({name}) == {a}" for name, (size, a) in sizes.items()]
    checks += ["RKNN_TENSOR_NC1HWC2 == 2", "RKNN_QUERY_CURRENT_NATIVE_OUTPUT_ATTR == 17", "sizeof(rknn_context) == 8"]
    source = tmp_path / "models.c"
    source.write_text(
        '#include "rknn_api.h"\n#include "rknn_matmul_api.h"\n'
        + "".join(f'_Static_assert({check}, "{check}");\n' for check in checks)
        + "int main(void) { return get_matmul_type_string((rknn_matmul_type)15)[0] != 'U'; }\n"
    )
    run(compile_c(tmp_path / "models", [source], "-pedantic"))


@pytest.mark.parametrize("header", ["rknn_api.h", "rknn_matmul_api.h", "npumatmul_sim.h"])
def test_headers_compile_as_cxx(header: str, tmp_path: Path) -> None:
    source = tmp_path / "use.cc"
    source.write_text(f'#include "{header}"\nint main() {{ return 0; }}\n')
    cxx = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    if cxx is None:
        pytest.skip("no C++ compiler on this machine; only a C compiler is required")
    flags = ["-Wall", "-Wextra", "-Werror", "-pedantic", f"-I{INCLUDE}", "-fsyntax-only"]
    subprocess.run([cxx, *flags, str(source)], check=True)
