"""Convolutions of PyTorch with their weights on the NPU: windows become rows of a product (`npumatmul.nn.Conv1d`)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn as torch_nn

from npumatmul import nn
from npumatmul.errors import NpuError
from npumatmul.llm.quantize.calibration import LayerStatistics
from npumatmul.nn.product import FLOAT32
from npumatmul.offload.products import Way, make_product
from npumatmul.torch.modules import NpuModule
from npumatmul.torch.tensors import array_of, tensor_of

__all__ = ["NpuConv1d", "NpuConv2d", "NpuConvTranspose1d", "NpuConvolution"]


class NpuConvolution(NpuModule):
    """A convolution with its weight on the NPU; `npumatmul.torch.offload` makes one of three kinds."""

    def __init__(self, module: Any, way: Way, name: str) -> None:
        super().__init__(way, name)
        self.expect("weight", module.weight)
        for each in ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups"):
            setattr(self, each, getattr(module, each))
        self.padding_mode, self.transposed = module.padding_mode, module.transposed
        self.output_padding = module.output_padding
        self.bias = None if module.bias is None else torch_nn.Parameter(module.bias.detach(), requires_grad=False)

    @classmethod
    def of(cls, module: Any, way: Way, name: str, statistics: LayerStatistics | None = None) -> NpuConvolution:
        """Put a module onto the NPU."""
        made = cls(module, way, name)
        made.take("weight", module.weight.detach())
        return made

    def extra_repr(self) -> str:
        """Return sizes, scheme and place."""
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}, "
            f"padding={self.padding}, dilation={self.dilation}, groups={self.groups}, bias={self.bias is not None}, "
            f"scheme={self.scheme!r}, where={self.where!r}"
        )

    def _layer(self) -> Any:
        options: dict[str, Any] = {
            "stride": self.stride, "padding": self.padding, "dilation": self.dilation, "groups": self.groups,
            "bias": False, "scheme": self.scheme, "device": self._way.device,
        }  # fmt: skip
        if self.transposed:
            options["output_padding"] = self.output_padding
        else:
            options["padding_mode"] = self.padding_mode
        make: Any = nn.ConvTranspose1d if self.transposed else (nn.Conv1d, nn.Conv2d)[len(self.kernel_size) - 1]
        if len(self.kernel_size) == 1:
            options = {k: v[0] if isinstance(v, tuple) else v for k, v in options.items()}
            return make(self.in_channels, self.out_channels, self.kernel_size[0], **options)
        return make(self.in_channels, self.out_channels, self.kernel_size, **options)

    def packed(self, name: str, values: torch.Tensor, statistics: LayerStatistics | None = None) -> Any:
        """Pack the weight."""
        layer = self._layer()
        given = {"weight": values.to(torch.float32).numpy()}
        if self.scheme == FLOAT32:
            layer.load_state_dict(given)
        else:
            layer.load_state_dict(given, pack=lambda weight, path: make_product(weight, self._way, None, self._name))
        return layer

    @classmethod
    def unpacked(cls, held: Any) -> torch.Tensor:
        """The weight."""
        return torch.from_numpy(np.ascontiguousarray(held.state_dict()["weight"], np.float32))

    @staticmethod
    def products_of(held: Any) -> list[Any]:
        """Those of all groups."""
        return list(held.products)

    def forward(self, x: torch.Tensor, output_size: Any = None) -> torch.Tensor:
        """Convolve ``(B, C, *spatial)`` or ``(C, *spatial)``; the result has the dtype of `x`.

        Raises
        ------
        TypeError, RuntimeError
            As `NpuLinear`; a transposed convolution whose `output_size` is given is refused.
        """
        if output_size is not None:
            raise TypeError(f"{self._name}: output_size is not supported; set output_padding before offload")
        x = self._cast(x)
        if self._is_plain(x):
            return self.multiply(x)
        same = isinstance(self.padding, str) and self.padding == "same"
        padding = [] if same else [0] * len(self.stride) if isinstance(self.padding, str) else list(self.padding)
        made: torch.Tensor = torch.ops.npumatmul.convolve(
            x, self._number, list(self._shapes["weight"]), list(self.stride), padding, list(self.dilation),
            self.transposed, list(self.output_padding), self.groups,
        )  # fmt: skip
        return made

    def multiply(self, *given: Any) -> torch.Tensor:
        """Convolve."""
        (x,) = given
        dims = len(self.kernel_size)
        if x.ndim not in (dims + 1, dims + 2) or x.shape[-dims - 1] != self.in_channels:
            raise RuntimeError(
                f"{self._name}: the input has shape {tuple(x.shape)}; it takes (batch, {self.in_channels}, "
                f"{'height, width' if dims == 2 else 'length'})"
            )
        try:
            made = np.asarray(self._held["weight"](array_of(x)))
        except ValueError as error:
            if isinstance(error, NpuError):
                raise
            raise RuntimeError(f"{self._name}: {error}") from error
        if self.bias is not None:
            bias = self.bias.detach().to(torch.float32).numpy()
            made = made + bias.reshape(-1, *(1,) * dims)
        return tensor_of(np.ascontiguousarray(made), x.dtype)


class NpuConv1d(NpuConvolution):
    """`torch.nn.Conv1d` with its weight on the NPU."""


class NpuConv2d(NpuConvolution):
    """`torch.nn.Conv2d` with its weight on the NPU."""


class NpuConvTranspose1d(NpuConvolution):
    """`torch.nn.ConvTranspose1d` with its weight on the NPU."""
