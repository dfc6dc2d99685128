"""`offload`: modules of a PyTorch model, one after another, onto the NPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from torch.nn.utils import parametrize
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm, SpectralNormLoadStateDictPreHook, SpectralNormStateDictHook
from torch.nn.utils.weight_norm import WeightNorm

from npumatmul.chips.layout import round_up
from npumatmul.llm.quantize.calibration import LayerStatistics
from npumatmul.offload.products import Way, check_way
from npumatmul.torch.calibrating import collect
from npumatmul.torch.convolutions import NpuConv1d, NpuConv2d, NpuConvolution, NpuConvTranspose1d
from npumatmul.torch.experts import experts_kind, experts_problem
from npumatmul.torch.modules import NpuConv1D, NpuLinear, NpuModule
from npumatmul.torch.report import OffloadReport, OffloadRow, row_of

__all__ = ["Filter", "candidates", "kind_of", "offload", "skips"]

Filter = Callable[[nn.Module, str], bool]

#: A convolution with fewer values per window and output than this would not fill a tile.
_LEAST_K, _LEAST_N = 32, 32


def offload(
    model: nn.Module,
    scheme: str = "w8a8",
    *,
    filter_fn: Filter | None = None,
    skip_modules: Sequence[str] = ("lm_head",),
    device_map: Mapping[str, str] | str | Any | None = None,
    example_inputs: Any = None,
    example_text: str | Sequence[str] | None = None,
    tokenizer: Any = None,
) -> OffloadReport:
    """Put the products of a model onto the NPU, in place.

    ``nn.Linear``, GPT-2's ``Conv1D``, ``nn.Conv1d``, ``nn.ConvTranspose1d``, ``nn.Conv2d`` and experts of mixtures of
    transformers are replaced by modules of the same names; all else stays where it was. The model is frozen and set to
    evaluation.

    Parameters
    ----------
    model : torch.nn.Module
        In the host's memory. A model that is nothing but one such module cannot be replaced in place.
    scheme : str
        How weights are stored and multiplied, as for `npumatmul.pack`; where activations are quantized a Hadamard
        rotation comes first. ``"float32"`` computes with numpy, for comparison.
    filter_fn : callable, optional
        Called with (module, its name); modules for which it returns False stay. With it, all convolutions are asked
        about, too, that would stay because they are small.
    skip_modules : sequence of str
        Names that stay: whole ones, their ends after a dot (``"lm_head"``), or patterns with ``*``.
    device_map : mapping of str to str, or Device or str, optional
        Where weights go: one device for all, or by patterns of names (the last that fits wins); ``"cpu"`` leaves
        modules as they are. By default the current device.
    example_inputs : tuple, mapping or list of those, optional
        Calls of the model whose activations decide how weights are rounded (GPTQ), for linear layers. A mapping is
        given by keywords.
    example_text : str or sequence of str, optional
        The same as texts, with a `tokenizer`.
    tokenizer : callable, optional
        Of transformers, for `example_text`.

    Returns
    -------
    OffloadReport
        What was put where, and what stays and why.

    Raises
    ------
    ValueError, TypeError
        If there is no such scheme, nothing to offload, or a pattern fits nothing; the model is as it was then.
    npumatmul.errors.NpuMemoryError
        If weights do not fit; the model is as it was then.

    Examples
    --------
    >>> import torch
    >>> from npumatmul.torch import offload
    >>> model = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 2))
    >>> report = offload(model)
    >>> [(row.name, row.k, row.n, row.scheme) for row in report]
    [('0', 64, 32, 'w8a8'), ('2', 32, 2, 'w8a8')]
    >>> model(torch.ones(5, 64)).shape
    torch.Size([5, 2])
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"offload: the model is a torch.nn.Module, not {type(model).__name__}")
    check_way(Way(scheme))
    ways = _Ways(scheme, device_map)
    if kind_of(model) or isinstance(model, NpuModule):
        raise TypeError(
            f"offload: the model is a single {type(model).__name__}, which cannot be replaced in place; put it into "
            "torch.nn.Sequential, or take npumatmul.nn"
        )
    chosen, left = {}, {}
    for name, module in candidates(model):
        why = _reason(module, name, skip_modules, filter_fn)
        if why is None and ways.of(name) is None:
            why = "device_map leaves it on the CPU"
        if why is None:
            chosen[name] = module
        else:
            left[name] = why
    ways.check_used([*chosen, *left])
    if not chosen:
        raise ValueError(
            "offload: nothing is left to put onto the NPU"
            + (": " + "; ".join(f"{name}: {why}" for name, why in list(left.items())[:5]) if left else
               f"; {type(model).__name__} has none of Linear, Conv1D, Conv1d, ConvTranspose1d, Conv2d or experts")
        )  # fmt: skip
    statistics = collect(
        model, [name for name, module in chosen.items() if kind_of(module) in (NpuLinear, NpuConv1D)],
        example_inputs, example_text, tokenizer,
    )  # fmt: skip
    made = _made(chosen, ways, statistics)
    return _replace(model, made, left)


def _made(
    chosen: Mapping[str, nn.Module], ways: _Ways, statistics: Mapping[str, LayerStatistics]
) -> dict[str, NpuModule]:
    """Modules in the place of others; of one that has several names, one."""
    made: dict[str, NpuModule] = {}
    known: dict[int, NpuModule] = {}
    for name, module in chosen.items():
        if id(module) not in known:
            way, kind = ways.of(name), kind_of(module)
            assert way is not None
            assert kind is not None
            settle_weights(module)
            known[id(module)] = kind.of(module, way, name, statistics.get(name))
        made[name] = known[id(module)]
    return made


def _replace(model: nn.Module, made: Mapping[str, NpuModule], left: dict[str, str]) -> OffloadReport:
    places: list[tuple[dict[str, Any], str, nn.Module, NpuModule]] = []
    rows: list[OffloadRow] = []
    for name, module in made.items():
        parent, _, own = name.rpartition(".")
        holders = model.get_submodule(parent)._modules
        old = holders[own]
        assert old is not None
        rows.append(row_of(name, _class_of(old), module))
        places.append((holders, own, old, module))
        module.keep_hooks(old)
    try:
        for holders, own, _, module in places:
            holders[own] = module
    except BaseException:  # an interrupt
        for holders, own, old, _ in places:
            holders[own] = old
        raise
    for _, _, old, module in places:
        settle_weights(old, forget=True)
        module.bind_hooks()
    model.eval()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    return OffloadReport(tuple(rows), left)


def candidates(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Modules that have products, by all of their names."""
    inside: set[int] = set()
    for name, module in model.named_modules(remove_duplicate=False):
        if id(module) in inside or isinstance(module, NpuModule) or not name:
            continue
        if kind_of(module) is not None or _problem(module):
            inside.update(id(each) for each in module.modules() if each is not module)
            yield name, module


def kind_of(module: nn.Module) -> Any:
    """The class that takes a module's place, or None."""
    if "forward" in vars(module):
        return None
    kind = _own_class(module)
    if (kind.__module__, kind.__name__) in _TRANSFORMERS:
        return _TRANSFORMERS[kind.__module__, kind.__name__]
    taken = (_KINDS[base] for base in _KINDS if issubclass(kind, base) and _inherits(kind, base))
    return experts_kind(module) or next(taken, None)


def _own_class(module: nn.Module) -> type:
    kind = type(module)
    return kind.__mro__[1] if parametrize.is_parametrized(module) else kind


def _inherits(kind: type, base: type) -> bool:
    """Whether a class computes what `base` does: it has the same forward, and nobody reads its weight instead."""
    names = ("forward", "_conv_forward")
    return kind is not NonDynamicallyQuantizableLinear and all(
        getattr(kind, name, None) is getattr(base, name, None) for name in names
    )


def _problem(module: nn.Module) -> str | None:
    """Why a module that has products cannot be replaced; empty if it is none that has."""
    kind = _own_class(module)
    if issubclass(kind, (*_KINDS, nn.ConvTranspose2d)) or (kind.__module__, kind.__name__) in _TRANSFORMERS:
        if "forward" in vars(module):
            return "its forward was replaced, such as by a hook of accelerate: remove that first"
        if kind is NonDynamicallyQuantizableLinear:
            return "nn.MultiheadAttention computes with its weight itself"
        return f"its class, {kind.__name__}, has a forward of its own, or none that is supported"
    return f"{kind.__name__} is not supported" if isinstance(module, _STAY) else experts_problem(module)


#: Classes of transformers that are one product under another name.
_TRANSFORMERS: Mapping[tuple[str, str], type[NpuModule]] = {
    ("transformers.pytorch_utils", "Conv1D"): NpuConv1D,
    ("transformers.models.falcon.modeling_falcon", "FalconLinear"): NpuLinear,
}

_KINDS: Mapping[type, type[NpuModule]] = {
    nn.Linear: NpuLinear,
    nn.Conv1d: NpuConv1d,
    nn.Conv2d: NpuConv2d,
    nn.ConvTranspose1d: NpuConvTranspose1d,
}

#: What multiplies with weights, too, and stays whole.
_STAY = (nn.RNNBase, nn.RNNCellBase, nn.Bilinear, nn.modules.conv._ConvNd)


def skips(name: str, patterns: Sequence[str]) -> bool:
    """Whether a name is one of those that stay."""
    return any(
        name == each or name.endswith(f".{each}") or fnmatchcase(name, each) or f".{each}." in f".{name}."
        for each in patterns
    )


def _reason(module: nn.Module, name: str, patterns: Sequence[str], filter_fn: Filter | None) -> str | None:
    """Why a module stays, or None."""
    if skips(name, patterns):
        return "skip_modules names it"
    kind = kind_of(module)
    if kind is None:
        return _problem(module)
    if filter_fn is not None and not filter_fn(module, name):
        return "filter_fn leaves it out"
    weights = [getattr(module, each) for each in kind.packed_names]
    for weight in weights:
        if weight.device.type != "cpu":
            return f"its weight is on {weight.device}"
        if weight.dtype not in (torch.float32, torch.float16, torch.bfloat16):
            return f"its weight is of {weight.dtype}"
        if 0 in weight.shape:
            return "its weight is empty"
    if not issubclass(kind, NpuConvolution):
        return None
    if getattr(module, "padding_mode", "zeros") != "zeros" and module.transposed:
        return "its padding is not of zeros"
    if filter_fn is None:
        groups = module.groups
        k, n = weights[0][0].numel(), weights[0].shape[0] // groups
        if module.transposed:
            k, n = weights[0].shape[0] // groups, weights[0][0].numel()
        if k < _LEAST_K or n < _LEAST_N:
            return f"its product of {k} x {n} would not fill a tile of {round_up(max(k, 1), 32)} x {round_up(n, 32)}"
    return None


def settle_weights(module: nn.Module, forget: bool = False) -> None:
    """Have weights computed that hooks compute of others whenever the module is called; then forget these hooks."""
    for key, hook in list(module._forward_pre_hooks.items()):
        if not isinstance(hook, WeightNorm | SpectralNorm | BasePruningMethod):
            continue
        if forget:
            del module._forward_pre_hooks[key]
        elif isinstance(hook, WeightNorm):
            setattr(module, hook.name, hook.compute_weight(module).detach())
        elif isinstance(hook, SpectralNorm):
            setattr(module, hook.name, hook.compute_weight(module, do_power_iteration=False).detach())
        else:
            mask: Any = hook.apply_mask
            setattr(module, hook._tensor_name, mask(module).detach())
    if forget:
        of_files: Any = (module._state_dict_hooks, module._load_state_dict_pre_hooks)
        for hooks in of_files:
            for key, each in list(hooks.items()):
                if isinstance(
                    getattr(each, "hook", each), SpectralNormStateDictHook | SpectralNormLoadStateDictPreHook
                ):
                    del hooks[key]


def _class_of(module: nn.Module) -> str:
    return _own_class(module).__name__


class _Ways:
    """Which scheme and device a module has."""

    def __init__(self, scheme: str, device_map: Any) -> None:
        self._scheme, self._map = scheme, device_map
        if isinstance(device_map, Mapping):
            for pattern, place in device_map.items():
                if not isinstance(pattern, str):
                    raise TypeError(f"offload: device_map maps names to devices; {pattern!r} is no name")
                if place is None:
                    raise TypeError(f"offload: device_map has no device for {pattern!r}")

    def of(self, name: str) -> Way | None:
        if not isinstance(self._map, Mapping):
            return None if self._map == "cpu" else Way(self._scheme, self._map)
        place: Any = None
        for pattern, each in self._map.items():
            if not pattern or skips(name, [pattern]):
                place = each
        return None if place == "cpu" else Way(self._scheme, place)

    def check_used(self, names: Sequence[str]) -> None:
        if isinstance(self._map, Mapping):
            for pattern in self._map:
                if pattern and not any(skips(name, [pattern]) for name in names):
                    raise ValueError(f"offload: device_map has {pattern!r}, which is the name of nothing to offload")
