"""Words that a run may say when it is sent to others: none of them is anybody's name (`sharing`)."""

from __future__ import annotations

import re

from npumatmul.chips.types import MatmulType
from npumatmul.errors import RKNN_ERRORS
from npumatmul.rknn.socs import SOCS

__all__ = ["WORDS"]

#: What benchmarks, their fields, options and remarks are made of.
_BENCHMARKS = """
a above ac ac_native add all alone an and anew as async at b b_native bandwidth batch batches below best beyond bias
bind both buffer by byte bytes c cache call calls case cases changed check checked clear cold columns compute context
contexts copied copy core cores cpu create ctypes default degrees demo depth depths destroy device devices down drift
driver dtype each else empty end execute executor fast faster fell fewer first fixed flush for free from full function
functions gb gbps generated gops groups has heat high host idle in into io is it its k kernel kib layout layouts least
less limit linear list llm load long low m main mask masks matmul mb me mean measured median mem memory mib min minus
mode model modelled models more most ms n native needs neither new no none norm normal not nothing now npu npuarray
numpy of off offset on once one only ops or order other out over overhead own pack packed pad padded padding
parameters per percent plus plus_minus precision product products prompt prompts python r random rate read reads
refused repetitions result results rounds row rows run runs s same sample samples scale scaled scales scheme schemes
second seconds seed set set_io_mem shape shapes share short silu size sizes slow slowed slower slows small speedup
square stay step steps store strict sync synchronise t take takes test tests than that the them this threads throttle
throttled throttling time timed times to together token tokens total type types unpack unpacked up us v values vector
w warm warmup was weight weights went when while with within without x y
"""
_SYSTEMS = """
64 aarch64 amd arm armv7l armv8l auto avx2 avx512 bf16 bigcore bigcore0 bigcore1 bigcore2 center conservative core(tm)
cortex cortex-a53 cortex-a55 cortex-a72 cortex-a73 cortex-a76 cortex-a78 current ddr dmc_ondemand dotprod edge epyc
f16 f32 false float16 float32 float64 fp fp16 fp32 ghz gold gpu hz i8 i8mm int int16 int32 int4 int64 int8 intel
intel(r) interactive khz legacy linux littlecore littlecore0 mhz neon neoverse ondemand package performance platinum
pmu powersave pp processor riscv64 rk3588s rk35xx rknn rknn_matmul_run rknpu_ondemand rockchip ryzen scalar schedutil
silver sim simple simple_ondemand simulator soc sse2 sve tg threadripper true u8 unknown userspace vendor x86 x86_64
xeon xeon(r) yes
"""
#: What language models that people run are called.
_MODELS = """
base chat coder deepseek distill f16 f32 gemma gemma2 gemma3 gemma4 gguf gpt2 granite instruct internlm2 it k_l k_m
k_s large lfm2 llama medium mini minicpm ministral mistral olmo phi phi2 phi3 phi4 q2_k q3_k q4_0 q4_1 q4_k q5_0 q5_1
q5_k q6_k q8_0 qwen qwen2 qwen2.5 qwen3 qwen3.5 r1 smollm smollm2 smollm3 stablelm starcoder2 tinyllama
"""

WORDS = frozenset(
    (
        *_BENCHMARKS.split(),
        *_SYSTEMS.split(),
        *_MODELS.split(),
        *SOCS,
        *(each.name.lower() for each in RKNN_ERRORS.values()),
        *(each.name.lower() for each in MatmulType),
        *(word for each in MatmulType for word in re.split("_", each.name.lower())),
    )
)
