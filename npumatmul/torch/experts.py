"""Experts of a mixture as transformers keeps them, all in one parameter, with their weights on the NPU."""

from __future__ import annotations

from typing import Any, ClassVar

import torch

from npumatmul.llm.quantize.calibration import LayerStatistics
from npumatmul.offload.products import Way, make_product, weight_and_shift
from npumatmul.torch.modules import NpuModule, _float32, _runner
from npumatmul.torch.tensors import array_of, tensor_of

__all__ = ["NpuExperts", "experts_problem"]


def experts_problem(module: Any) -> str | None:
    """Why a module is no set of experts that can be offloaded; empty if it is none at all, None if it can be."""
    up, down = (getattr(module, name, None) for name in ("gate_up_proj", "down_proj"))
    if not (isinstance(up, torch.Tensor) and isinstance(down, torch.Tensor) and up.ndim == down.ndim == 3):
        return ""
    if not hasattr(module, "has_gate"):
        return "experts of a class that does not say how they are laid out are not supported"
    gate = getattr(type(module), "_apply_gate", None)
    if gate is not None and gate.__name__ != "_default_apply_gate":
        return f"experts with a gate of their own ({type(module).__name__}) are not supported"
    wanted = {"has_gate": True, "has_bias": False, "is_transposed": False, "is_concatenated": True}
    for name, value in wanted.items():
        if getattr(module, name, value) != value:
            return f"experts with {name}={not value} are not supported"
    if getattr(module, "has_post_expert_norm", False):
        return "experts with norms are not supported"
    if not callable(getattr(module, "act_fn", None)):
        return "experts without act_fn are not supported"
    if up.shape[2] != down.shape[1] or up.shape[1] != 2 * down.shape[2]:
        return f"experts of shapes {tuple(up.shape)} and {tuple(down.shape)} are not supported"
    return None


class NpuExperts(NpuModule):
    """Experts with their weights on the NPU: a product for the rows of each expert that is chosen."""

    packed_names: ClassVar[tuple[str, ...]] = ("gate_up_proj", "down_proj")

    def __init__(self, module: Any, way: Way, name: str) -> None:
        super().__init__(way, name)
        self.num_experts = module.gate_up_proj.shape[0]
        self.act_fn = module.act_fn
        for each in self.packed_names:
            self.expect(each, getattr(module, each))

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

    def extra_repr(self) -> str:
        """Return sizes, scheme and place."""
        shape = self._shapes["gate_up_proj"]
        return f"{shape[0]} of {shape[2]} x {shape[1] // 2}, scheme={self.scheme!r}, where={self.where!r}"

    def packed(self, name: str, values: torch.Tensor, statistics: LayerStatistics | None = None) -> Any:
        """Pack the weights of all experts."""
        products = [
            make_product(_float32(each), self._way, None, f"{self._name}.{name}[{i}]") for i, each in enumerate(values)
        ]
        return products, [_runner(product) for product in products]

    @classmethod
    def unpacked(cls, held: Any) -> torch.Tensor:
        """The weights of all experts."""
        return torch.stack([torch.from_numpy(weight_and_shift(product)[0]) for product in held[0]])

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
        ups, downs = (self._held[name][1] for name in self.packed_names)
        for expert in torch.unique(chosen).tolist():
            if expert == self.num_experts:
                continue
            rows, place = torch.where(chosen == expert)
            inner = tensor_of(ups[expert](array_of(x[rows]), None), x.dtype)
            gate, up = inner.chunk(2, dim=-1)
            made = tensor_of(downs[expert](array_of(self.act_fn(gate) * up), None), x.dtype)
            result.index_add_(0, rows, (made * shares[rows, place, None]).to(x.dtype))
        return result
