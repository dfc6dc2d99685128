"""Quantizing while transformers loads a model: ``from_pretrained(..., quantization_config=NpuConfig("w8a8"))``."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers.core_model_loading import ConversionOps
from transformers.pytorch_utils import Conv1D
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.quantizers.quantizers_utils import get_module_from_name
from transformers.utils.quantization_config import QuantizationConfigMixin

from npumatmul.offload.products import Way, check_way
from npumatmul.torch.experts import NpuExperts
from npumatmul.torch.modules import NpuConv1D, NpuLinear, NpuModule
from npumatmul.torch.offloading import candidates, kind_of, skips

__all__ = ["NpuConfig", "NpuQuantizer"]

METHOD = "npumatmul"


@register_quantization_config(METHOD)
class NpuConfig(QuantizationConfigMixin):  # type: ignore[misc]
    """How transformers puts a model onto the NPU while it reads it; each weight is packed as it comes.

    Parameters
    ----------
    scheme : str
        As for `npumatmul.torch.offload`.
    skip_modules : list of str, optional
        Names that stay; by default what transformers leaves out for every quantizer: the output matrix and what is
        tied to it.
    device : str, optional
        The current device by default. It is not written into config.json.

    Notes
    -----
    ``save_pretrained`` writes weights as they are stored, and this configuration; importing `npumatmul.torch.NpuConfig`
    before ``from_pretrained`` lets transformers read it again.

    Examples
    --------
    >>> from npumatmul.torch import NpuConfig
    >>> NpuConfig("w8a8").to_dict()["quant_method"]
    'npumatmul'
    """

    def __init__(
        self, scheme: str = "w8a8", skip_modules: list[str] | None = None, device: Any = None, **kwargs: Any
    ) -> None:
        kwargs.pop("quant_method", None)
        if kwargs:
            raise TypeError(f"NpuConfig has no {', '.join(sorted(kwargs))}")
        self.quant_method = METHOD
        self.scheme = scheme
        self.skip_modules = skip_modules
        self.device = device
        check_way(Way(scheme, device))

    def to_dict(self) -> dict[str, Any]:
        """What config.json has of it."""
        found = {"quant_method": METHOD, "scheme": self.scheme}
        return found if self.skip_modules is None else {**found, "skip_modules": list(self.skip_modules)}

    def to_diff_dict(self) -> dict[str, Any]:
        """The same."""
        return self.to_dict()


@register_quantizer(METHOD)
class NpuQuantizer(HfQuantizer):  # type: ignore[misc]
    """What transformers calls while it loads a model with an `NpuConfig`."""

    requires_calibration = False

    def __init__(self, quantization_config: NpuConfig, **kwargs: Any) -> None:
        super().__init__(quantization_config, **kwargs)
        self._misfits: set[str] = set()  # weights whose shape is another one in the file
        self.pre_quantized = False  # files hold floats, also those that were written by a model on the NPU

    def update_device_map(self, device_map: Any) -> Any:
        """Everything else stays in the host's memory."""
        return {"": "cpu"} if device_map in (None, "auto") else device_map

    def param_needs_quantization(self, model: Any, param_name: str, **kwargs: Any) -> bool:
        """Whether a parameter is a weight that goes onto the NPU."""
        module, name = get_module_from_name(model, param_name)
        return isinstance(module, NpuModule) and name in module.packed_names and param_name not in self._misfits

    def _process_model_before_weight_loading(self, model: Any, **kwargs: Any) -> None:
        config: NpuConfig = self.quantization_config
        stay = self.get_modules_to_not_convert(model, config.skip_modules, model._keep_in_fp32_modules)
        way = Way(config.scheme, config.device)
        for name, module in list(candidates(model)):
            kind: Any = kind_of(module)
            if issubclass(kind or object, (NpuLinear, NpuExperts)) and not skips(name, stay):
                parent, _, own = name.rpartition(".")
                made = kind.waiting(module, way, name)
                made.keep_hooks(module)
                made.bind_hooks()
                model.get_submodule(parent)._modules[own] = made

    def _process_model_after_weight_loading(self, model: Any, **kwargs: Any) -> Any:
        for name, module in model.named_modules():
            if isinstance(module, NpuModule) and any(
                module._parameters.get(each) is not None for each in module.packed_names
            ):
                if not isinstance(module, NpuLinear):
                    raise ValueError(f"NpuConfig: no file has all weights of {name}; leave it out by skip_modules")
                _draw(model, module)
        return model

    def get_quantize_ops(self) -> Any:
        """What packs a weight."""
        return _Packing(self._misfits)

    def is_serializable(self, **kwargs: Any) -> bool:
        """It is: weights are read back."""
        return True

    @property
    def is_trainable(self) -> bool:
        """It is not."""
        return False

    @property
    def is_compileable(self) -> bool:
        """It is: products are operators."""
        return True


def _draw(model: Any, module: NpuLinear) -> None:
    """Have a layer that no file has made as the model makes new ones."""
    weight = module._parameters["weight"]
    assert weight is not None
    kind: Any = Conv1D if isinstance(module, NpuConv1D) else nn.Linear
    sizes = (module.in_features, module.out_features)
    new = kind(*(sizes[::-1] if kind is Conv1D else sizes)).to(weight.dtype)
    model._init_weights(new)
    module.take("weight", new.weight.detach())
    if module.bias is not None:
        module.bias = nn.Parameter(new.bias.detach(), requires_grad=False)


class _Packing(ConversionOps):  # type: ignore[misc]
    def __init__(self, misfits: set[str]) -> None:
        self._misfits = misfits

    def convert(
        self, input_dict: Any, *args: Any, model: Any = None, full_layer_name: str = "", missing_keys: Any = None,
        **kwargs: Any,
    ) -> dict[str, torch.Tensor]:  # fmt: skip
        for value in input_dict.values():
            tensor = value[0] if isinstance(value, list) else value
            module, name = get_module_from_name(model, full_layer_name)
            if tuple(tensor.shape) != module._shapes[name]:
                self._misfits.add(full_layer_name)
                return {full_layer_name: tensor}  # transformers tells of it, or draws new values
            module.take(name, tensor)
            module._is_hf_initialized = not any(
                module._parameters.get(each) is not None for each in module.packed_names
            )
        if missing_keys is not None:
            missing_keys.discard(full_layer_name)
        return {}
