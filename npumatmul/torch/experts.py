"""Experts of a mixture as transformers keeps them, all in one parameter, with their weights on the NPU."""

from __future__ import annotations

import copy
from typing import Any, ClassVar

import torch
from torch import nn

from npumatmul.llm.quantize.calibration import LayerStatistics
from npumatmul.offload.products import Way, make_product, weight_and_shift
from npumatmul.torch.modules import NpuModule, _float32, _runner
from npumatmul.torch.tensors import array_of, tensor_of

__all__ = ["NpuExperts", "NpuUngatedExperts", "experts_kind", "experts_problem"]


def experts_kind(module: Any) -> type[NpuExperts] | None:
    """The class that takes the place of a set of experts; None if there is none."""
    return None if experts_problem(module) is not None else _kind_of(module)


def experts_problem(module: Any) -> str | None:
    """Why a module is no set of experts that can be offloaded; empty if it is none at all, None if it can be."""
    kind = _kind_of(module)
    if kind is None:
        return ""
    up, down = (getattr(module, name) for name in kind.packed_names)
    if not all(hasattr(module, name) for name in ("has_gate", "has_bias", "is_transposed")):
        return "experts of a class that does not say how they are laid out are not supported"
    names = {*kind.packed_names, *(f"{name}_bias" for name in kind.packed_names if module.has_bias)}
    if names != set(module._parameters):
        return f"experts with parameters {', '.join(sorted(module._parameters))} are not supported"
    if module.has_gate != (kind is NpuExperts) or not callable(getattr(module, "_apply_gate", None)):
        return f"experts with has_gate={module.has_gate} and {kind.packed_names[0]} are not supported"
    (k, inner), (outer, n) = (each.shape[1:] if module.is_transposed else each.shape[:0:-1] for each in (up, down))
    if inner != outer * (2 if module.has_gate else 1) or k != n:
        return f"experts of shapes {tuple(up.shape)} and {tuple(down.shape)} are not supported"
    return None


def _kind_of(module: Any) -> type[NpuExperts] | None:
    def is_set(name: str) -> bool:
        found = module._parameters.get(name)
        return found is not None and found.ndim == 3

    return next((kind for kind in (NpuExperts, NpuUngatedExperts) if all(map(is_set, kind.packed_names))), None)


class NpuExperts(NpuModule):
    """Experts with their weights on the NPU: a product for the rows of each expert that is chosen.

    Their activation, a gate of their own, biases and norms stay what they were.
    """

    packed_names: ClassVar[tuple[str, ...]] = ("gate_up_proj", "down_proj")

    def __init__(self, module: Any, way: Way, name: str) -> None:
        super().__init__(way, name)
        self.num_experts = getattr(module, self.packed_names[0]).shape[0]
        self.is_transposed = bool(module.is_transposed)
        for each in self.packed_names:
            self.expect(each, getattr(module, each))
            bias = getattr(module, f"{each}_bias") if module.has_bias else None
            if bias is not None:
                self.register_parameter(f"{each}_bias", nn.Parameter(bias.detach(), requires_grad=False))
        self.post_expert_norm = module.post_expert_norm if getattr(module, "has_post_expert_norm", False) else None
        self.__dict__["_former"] = _without_parameters(module)  # no submodule: it has nothing to save or move

    @classmethod
    def of(cls, module: Any, way: Way, name: str, statistics: LayerStatistics | None = None) -> NpuExperts:
        """Put experts onto the NPU."""
        made = cls(module, way, name)
        for each in cls.packed_names:
            made.take(each, getattr(module, each).detach())
        return made

    @classmethod
    def waiting(cls, module: Any, way: Way, name: str) -> NpuExperts:
        """Experts whose weights are to be loaded."""
        made = cls(module, way, name)
        for each in cls.packed_names:
            made.expect_parameter(each, getattr(module, each))
        return made

    @property
    def source(self) -> Any:
        """What modules have in common that can take each other's packed weights."""
        return (*super().source, self.is_transposed)

    def extra_repr(self) -> str:
        """Return sizes, scheme and place."""
        count, *shape = self._shapes[self.packed_names[1]]
        n, k = shape[::-1] if self.is_transposed else shape
        return f"{count} of {n} x {k}, scheme={self.scheme!r}, where={self.where!r}"

    def packed(self, name: str, values: torch.Tensor, statistics: LayerStatistics | None = None) -> Any:
        """Pack the weights of all experts."""
        products = [
            make_product(_float32(each.T if self.is_transposed else each), self._way, None, f"{self._name}.{name}[{i}]")
            for i, each in enumerate(values)
        ]
        return products, [_runner(product) for product in products], self.is_transposed

    @classmethod
    def unpacked(cls, held: Any) -> torch.Tensor:
        """The weights of all experts."""
        made = torch.stack([torch.from_numpy(weight_and_shift(product)[0]) for product in held[0]])
        return made.mT.contiguous() if held[2] else made

    @staticmethod
    def products_of(held: Any) -> list[Any]:
        """One for each expert."""
        return list(held[0])

    def forward(self, x: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor) -> torch.Tensor:
        """Add up what the chosen experts make of each row.

        Parameters
        ----------
        x : Tensor, shape (T, hidden)
        top_k_index, top_k_weights : Tensor, shape (T, chosen)
            Numbers of the experts, and their shares; `num_experts` stands for none.
        """
        if self._is_plain(x):
            return self.multiply(x, top_k_index, top_k_weights)
        made: torch.Tensor = torch.ops.npumatmul.experts(x, top_k_index, top_k_weights, self._number)
        return made

    def multiply(self, *given: Any) -> torch.Tensor:
        """Multiply the rows of each expert."""
        x, chosen, shares = given
        missing = [name for name in self.packed_names if name not in self._held]
        if missing:
            raise RuntimeError(f"{self._name}: {missing[0]} was not loaded yet")
        result = torch.zeros_like(x)
        up, down = self.packed_names
        for expert in torch.unique(chosen).tolist():
            if expert == self.num_experts:
                continue
            rows, place = torch.where(chosen == expert)
            made = self._product(down, expert, self._activated(self._product(up, expert, x[rows])))
            if self.post_expert_norm is not None:
                made = self.post_expert_norm(made)
            result.index_add_(0, rows, (made * shares[rows, place, None]).to(x.dtype))
        return result

    def _product(self, name: str, expert: int, x: torch.Tensor) -> torch.Tensor:
        bias = self._parameters.get(f"{name}_bias")
        made = self._held[name][1][expert](array_of(x), None if bias is None else _float32(bias[expert]))
        return tensor_of(made, x.dtype)

    def _activated(self, inner: torch.Tensor) -> torch.Tensor:
        made: torch.Tensor = self._former._apply_gate(inner)
        return made


class NpuUngatedExperts(NpuExperts):
    """Experts without a gate, such as those of Nemotron-H."""

    packed_names: ClassVar[tuple[str, ...]] = ("up_proj", "down_proj")

    def _activated(self, inner: torch.Tensor) -> torch.Tensor:
        made: torch.Tensor = self._former.act_fn(inner)
        return made


def _without_parameters(module: nn.Module) -> nn.Module:
    """A module with the same methods and settings, and nothing that holds its weights."""
    made = copy.copy(module)
    made._parameters = {}
    return made
