"""Modules whose weight is on the NPU, under the names that it had."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn.modules.module import _WrappedHook
from torch.overrides import has_torch_function_unary

from npumatmul.llm.quantize.calibration import LayerStatistics
from npumatmul.nn.product import PackedProduct
from npumatmul.offload.products import Way, make_product, nbytes_of, place_of, weight_and_shift
from npumatmul.ops import matmul
from npumatmul.torch import operators
from npumatmul.torch.tensors import FLOATS, PackedTensor, array_of, tensor_of

__all__ = ["NpuConv1D", "NpuLinear", "NpuModule"]


class NpuModule(nn.Module):
    """Base of modules whose weights are on the NPU.

    They are frozen: training raises. ``state_dict`` reads the weights back, as they are stored, under the names that
    they had, and ``load_state_dict`` packs new ones; ``copy.deepcopy`` shares them; ``to`` and ``half`` are of no
    consequence but for biases, since results have the dtype of what is given.

    Attributes
    ----------
    scheme : str
    where : str
        The device's name, or ``"cpu"``.
    """

    #: Names of the weights.
    packed_names: ClassVar[tuple[str, ...]] = ("weight",)

    def __init__(self, way: Way, name: str) -> None:
        super().__init__()
        self._way, self._name = way, name
        self._dtypes: dict[str, torch.dtype] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._seen: dict[str, PackedTensor] = {}
        self._held: dict[str, Any] = {}  # what multiplies, by the weight's name; never changed, but replaced
        self._number = operators.register(self)
        super().train(False)

    # ---- what kinds of modules differ in -----------------------------------------------------------------------------

    def packed(self, name: str, values: torch.Tensor, statistics: LayerStatistics | None = None) -> Any:
        """Pack a weight of the shape that PyTorch has it in; what is returned multiplies."""
        raise NotImplementedError

    @classmethod
    def unpacked(cls, held: Any) -> torch.Tensor:
        """A weight in float32, of what `packed` returned."""
        raise NotImplementedError

    @staticmethod
    def products_of(held: Any) -> list[Any]:
        """The products of what `packed` returned."""
        raise NotImplementedError

    def multiply(self, *given: Any) -> torch.Tensor:
        """Compute; tensors are those of a host."""
        raise NotImplementedError

    # ---- what they have in common ------------------------------------------------------------------------------------

    def pack(self, name: str, values: torch.Tensor, statistics: LayerStatistics | None = None) -> None:
        """Pack a weight. Copies that share the one before keep it."""
        self._held = {**self._held, name: self.packed(name, values, statistics)}

    def unpack(self, name: str) -> torch.Tensor:
        """A weight, as it is stored, in float32."""
        return self.unpacked(self._held[name])

    def products(self) -> list[Any]:
        """The products; empty before there are weights."""
        return [each for name in self.packed_names if name in self._held for each in self.products_of(self._held[name])]

    @property
    def scheme(self) -> str:
        """Name of the scheme."""
        return self._way.scheme

    @property
    def source(self) -> Any:
        """What modules have in common that can take each other's packed weights."""
        return type(self), self._way

    @property
    def where(self) -> str:
        """Name of the device."""
        found = self.products()
        return place_of(found[0]) if found else str(self._way.device)

    @property
    def nbytes(self) -> int:
        """Bytes of the packed weights."""
        return sum(nbytes_of(each) for each in self.products())

    def expect(self, name: str, weight: torch.Tensor) -> None:
        """Remember shape and dtype of a weight."""
        self._shapes[name], self._dtypes[name] = tuple(weight.shape), weight.dtype

    def expect_parameter(self, name: str, weight: torch.Tensor) -> None:
        """Have a parameter without values in the place of a weight that is to be loaded."""
        self.expect(name, weight)
        meta = torch.empty(weight.shape, dtype=weight.dtype, device="meta")
        self._parameters[name] = nn.Parameter(meta, requires_grad=False)

    def take(self, name: str, values: torch.Tensor, statistics: LayerStatistics | None = None) -> None:
        """Pack new values of a weight.

        Raises
        ------
        ValueError
            If they have another shape.
        """
        if tuple(values.shape) != self._shapes[name]:
            raise ValueError(f"{self._name}.{name} has shape {self._shapes[name]}; values have {tuple(values.shape)}")
        if not values.dtype.is_floating_point:
            raise TypeError(f"{self._name}.{name}: a weight of {values.dtype} cannot be packed; floats can")
        if isinstance(values, PackedTensor) and values.source == self.source:
            self._held = {**self._held, name: values.held}
        else:
            self.pack(name, values.detach(), statistics)
        self._parameters.pop(name, None)
        self._seen.clear()

    def seen(self, name: str) -> torch.Tensor:
        """The weight as other code sees it."""
        waiting = self._parameters.get(name)
        if waiting is not None:
            return waiting
        found = self._seen.get(name)
        if found is None:
            found = PackedTensor(
                type(self).unpacked, self._held[name], self.source, self._shapes[name], self._dtypes[name]
            )
            self._seen[name] = found
        return found

    def __getattr__(self, name: str) -> Any:
        if name in type(self).packed_names and name in self.__dict__.get("_shapes", ()):
            return self.seen(name)
        return super().__getattr__(name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in type(self).packed_names and isinstance(value, torch.Tensor) and name in self._shapes:
            if self._parameters.get(name) is not None and not getattr(value, "_is_hf_initialized", False):
                # memory that transformers gives to what no file has, to draw values into
                self._parameters[name] = nn.Parameter(value.detach(), requires_grad=False)
            elif value is not self._seen.get(name):
                self.take(name, value)
            return
        super().__setattr__(name, value)

    def train(self, mode: bool = True) -> Any:
        """Refuse to train.

        Raises
        ------
        RuntimeError
            If `mode` is true.
        """
        if mode:
            raise RuntimeError(
                f"{self._name}: weights on the NPU are frozen, so this model cannot be trained; train it before offload"
            )
        return super().train(False)

    def _is_plain(self, x: torch.Tensor) -> bool:
        """Whether nobody watches: a call of the operator would do nothing but look the module up."""
        return (
            type(x) is torch.Tensor
            and x.device.type != "meta"
            and not torch.compiler.is_compiling()
            and not torch.jit.is_tracing()  # type: ignore[no-untyped-call,attr-defined]
            and not (x.requires_grad and torch.is_grad_enabled())
            and torch._C._len_torch_dispatch_stack() == 0
            and not torch._C._functorch.peek_interpreter_stack()
        )

    def _cast(self, x: torch.Tensor) -> torch.Tensor:
        """What autocast makes of an operand; a stand-in of `torch.fx` stays one."""
        if not isinstance(x, torch.Tensor):
            if has_torch_function_unary(x):
                return x
            raise TypeError(f"{self._name}: the input is a Tensor, not {type(x).__name__}")
        if x.device.type == "cpu" and torch.is_autocast_enabled("cpu") and x.dtype in FLOATS:
            return x.to(torch.get_autocast_dtype("cpu"))
        return x

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        for name in self._shapes:
            if self._parameters.get(name) is None:
                destination[prefix + name] = self.unpack(name).to(self._dtypes[name])
        super()._save_to_state_dict(destination, prefix, keep_vars)

    def _load_from_state_dict(
        self, state_dict: Any, prefix: str, local_metadata: Any, strict: bool, missing_keys: list[str],
        unexpected_keys: list[str], error_msgs: list[str],
    ) -> None:  # fmt: skip
        waiting = {name: self._parameters.pop(name) for name in list(self._shapes) if name in self._parameters}
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        for name in self._shapes:
            key = prefix + name
            if key in unexpected_keys:
                unexpected_keys.remove(key)
            if key in state_dict:
                try:
                    self.take(name, state_dict[key])
                except (ValueError, TypeError) as error:
                    error_msgs.append(str(error))
            elif strict:
                missing_keys.append(key)
            if name in waiting and key not in state_dict:
                self._parameters[name] = waiting[name]

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        made = type(self).__new__(type(self))
        memo[id(self)] = made
        shared = {"_held", "_way", "_seen"}
        state = {k: v if k in shared else copy.deepcopy(v, memo) for k, v in self.__dict__.items()}
        made.__dict__.update(state)
        made.__dict__["_seen"] = {}
        made.__dict__["_number"] = operators.register(made)
        return made

    def __getstate__(self) -> dict[str, Any]:
        state = dict(self.__dict__)
        for name in ("_held", "_number", "_seen"):
            state.pop(name, None)
        device = self._way.device
        state["_way"] = Way(self.scheme, device if isinstance(device, str) or device is None else device.name)
        state["packed"] = {name: self.unpack(name) for name in self._shapes if self._parameters.get(name) is None}
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        packed = state.pop("packed")
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self.__dict__["_seen"] = {}
        self.__dict__["_held"] = {}
        self.__dict__["_number"] = operators.register(self)
        for name, values in packed.items():
            self.pack(name, values)

    def keep_hooks(self, module: nn.Module) -> None:
        """Have the hooks of the module in whose place this one is: the same ones, so that their handles remove them."""
        for name in _HOOKS:
            self.__dict__[name] = module.__dict__[name]

    def bind_hooks(self) -> None:
        """Have hooks that are told their module be told this one."""
        hooks: dict[int, Any] = self.__dict__["_load_state_dict_pre_hooks"]
        for key, hook in hooks.items():
            if isinstance(hook, _WrappedHook) and hook.with_module:
                hooks[key] = _WrappedHook(hook.hook, self)


#: All but those of gradients, which there are none of.
_HOOKS = (
    "_forward_hooks", "_forward_pre_hooks", "_forward_hooks_with_kwargs", "_forward_pre_hooks_with_kwargs",
    "_forward_hooks_always_called", "_state_dict_hooks", "_state_dict_pre_hooks", "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
)  # fmt: skip


class NpuLinear(NpuModule):
    """`torch.nn.Linear` with its weight on the NPU; `npumatmul.torch.offload` makes it.

    Attributes
    ----------
    in_features, out_features : int
    bias : torch.nn.Parameter or None
        In float32 or what it is cast to; it is added in the pass that stores the result.
    weight : PackedTensor
        Shape and dtype of the weight; values are read back when they are used.
    """

    #: Whether the weight is stored inputs by outputs.
    is_transposed: ClassVar[bool] = False

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None, way: Way, name: str = "") -> None:
        super().__init__(way, name or type(self).__name__)
        self.expect("weight", weight)
        n, k = tuple(weight.shape)[:: -1 if self.is_transposed else 1]
        self.in_features, self.out_features = k, n
        self.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)

    @classmethod
    def of(cls, module: Any, way: Way, name: str, statistics: LayerStatistics | None = None) -> NpuLinear:
        """Put a module onto the NPU."""
        made = cls(module.weight, module.bias, way, name)
        made.take("weight", module.weight.detach(), statistics)
        return made

    @classmethod
    def waiting(cls, module: Any, way: Way, name: str) -> NpuLinear:
        """A module whose weight is to be loaded."""
        made = cls(module.weight, module.bias, way, name)
        made.expect_parameter("weight", module.weight)
        return made

    def extra_repr(self) -> str:
        """Return sizes, scheme and place."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}, "
            f"scheme={self.scheme!r}, where={self.where!r}"
        )

    def packed(self, name: str, values: torch.Tensor, statistics: LayerStatistics | None = None) -> Any:
        """Pack the weight."""
        rows = values.T if self.is_transposed else values
        product = make_product(_float32(rows), self._way, statistics, self._name)
        return product, _runner(product)

    @classmethod
    def unpacked(cls, held: Any) -> torch.Tensor:
        """The weight."""
        weight, _ = weight_and_shift(held[0])
        return torch.from_numpy(np.ascontiguousarray(weight.T if cls.is_transposed else weight))

    @staticmethod
    def products_of(held: Any) -> list[Any]:
        """The one there is."""
        return [held[0]]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Multiply ``(..., in_features)`` to ``(..., out_features)`` of the same dtype.

        Raises
        ------
        TypeError
            If `x` is not of float32, float16 or bfloat16, or not on the CPU.
        RuntimeError
            If it has another width, as of `torch.nn.Linear`; or if a gradient is asked for.
        """
        x = self._cast(x)
        if self._is_plain(x):
            return self.multiply(x)
        made: torch.Tensor = torch.ops.npumatmul.linear(x, self._number, self.out_features)
        return made

    def multiply(self, *given: Any) -> torch.Tensor:
        """Multiply rows."""
        (x,) = given
        if x.shape[-1:] != (self.in_features,):
            raise RuntimeError(
                f"{self._name}: the input has shape {tuple(x.shape)}, and the weight takes {self.in_features} values"
            )
        held = self._held.get("weight")
        if held is None:
            raise RuntimeError(f"{self._name}: its weight was not loaded yet")
        bias = self.bias
        return tensor_of(held[1](array_of(x), None if bias is None else _float32(bias)), x.dtype)


class NpuConv1D(NpuLinear):
    """The linear layer of GPT-2 in transformers, whose weight is stored inputs by outputs, on the NPU."""

    is_transposed: ClassVar[bool] = True

    @property
    def nf(self) -> int:
        """Outputs."""
        return self.out_features

    @property
    def nx(self) -> int:
        """Inputs."""
        return self.in_features


def _runner(product: Any) -> Callable[[NDArray[Any], NDArray[np.float32] | None], NDArray[Any]]:
    """How rows are multiplied, and a bias is added."""
    if type(product) is PackedProduct:
        weight = product.weight

        def packed(x: NDArray[Any], bias: NDArray[np.float32] | None) -> NDArray[Any]:
            made: NDArray[Any] = matmul(x, weight, bias=bias, dtype=None if x.dtype == np.float32 else x.dtype)
            return made

        return packed

    def other(x: NDArray[Any], bias: NDArray[np.float32] | None) -> NDArray[Any]:
        rows = np.ascontiguousarray(x, np.float32).reshape(-1, x.shape[-1])
        made = product(rows)
        if bias is not None:
            made = made + bias
        result: NDArray[Any] = made.reshape(*x.shape[:-1], made.shape[-1]).astype(x.dtype, copy=False)
        return result

    return other


def _float32(x: torch.Tensor) -> NDArray[np.float32]:
    made: NDArray[np.float32] = x.detach().to(torch.float32).numpy()
    return made
