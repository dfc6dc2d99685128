"""Models of PyTorch with their products on the NPU: nothing is converted, and every shape is dynamic.

>>> import torch
>>> from npumatmul.torch import offload
>>> model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.GELU(), torch.nn.Linear(64, 8))
>>> print(len(offload(model, "w16a16")), model(torch.zeros(3, 64)).shape)
2 torch.Size([3, 8])
"""

from typing import TYPE_CHECKING as _TYPE_CHECKING
from typing import Any as _Any

from npumatmul.extras import explain_missing as _explain_missing

try:
    from npumatmul.torch.analysis import LayerError, analyze
    from npumatmul.torch.convolutions import NpuConv1d, NpuConv2d, NpuConvTranspose1d
    from npumatmul.torch.experts import NpuExperts
    from npumatmul.torch.modules import NpuConv1D, NpuLinear, NpuModule
    from npumatmul.torch.offloading import offload
    from npumatmul.torch.report import OffloadReport, OffloadRow
except ImportError as error:
    _explain_missing(error, "npumatmul.torch")
    raise

if _TYPE_CHECKING:
    from npumatmul.torch.hugging_face import NpuConfig as NpuConfig

__all__ = [
    "LayerError",
    "NpuConfig",
    "NpuConv1D",
    "NpuConv1d",
    "NpuConv2d",
    "NpuConvTranspose1d",
    "NpuExperts",
    "NpuLinear",
    "NpuModule",
    "OffloadReport",
    "OffloadRow",
    "analyze",
    "offload",
]


def __getattr__(name: str) -> _Any:
    if name == "NpuConfig":  # here, since transformers need not be there, and takes seconds to import
        try:
            from npumatmul.torch.hugging_face import NpuConfig
        except ImportError as error:
            _explain_missing(error, "NpuConfig")
            raise
        return NpuConfig
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
