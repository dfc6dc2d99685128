"""`Linear` and `LinearGroup`: products with weights in PyTorch's order, outputs by inputs."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from npumatmul.device.device import Device
from npumatmul.errors import ModelError, NotFiniteError
from npumatmul.nn.module import Module, Take, as_floats, check_size, float32_of, floats, rounded_to
from npumatmul.nn.product import Float32, Pack, PackedProduct, Product, check_scheme, named, packed_by, product_of
from npumatmul.nn.recordable import CHANGES
from npumatmul.ops import NpuArray, PackedWeight
from npumatmul.quant.names import SchemeName
from npumatmul.quant.schemes import Scheme

__all__ = ["Linear", "LinearGroup"]

_Self = TypeVar("_Self", bound="_Multiplying")
_ARRAYS = frozenset({np.ndarray, NpuArray})
_F32 = np.dtype(np.float32)


class _Multiplying(Module):
    """What `Linear` and `LinearGroup` share: one product, a bias, and how they are called."""

    def __init__(
        self, k: int, n: int, has_bias: bool, scheme: Scheme | SchemeName | str, device: Device | str | None
    ) -> None:
        self._k, self._n, self._has_bias = k, n, has_bias
        self._scheme = check_scheme(scheme, type(self).__name__)
        self._device = device
        self._product: Product | None = None
        self._packed: PackedProduct | None = None
        self._bias: Float32 | None = None

    @property
    def product(self) -> Product:
        """What it multiplies with.

        Raises
        ------
        ModelError
            If no weight was loaded yet.
        """
        if self._product is None:
            raise ModelError(f"{self!r} has no weight yet; load_state_dict loads one")
        return self._product

    @property
    def product_shape(self) -> tuple[int, int]:
        """``(K, N)`` of its product, before there is one, too."""
        return self._k, self._n

    @property
    def bias(self) -> Float32 | None:
        """What is added to every row, ``(N,)``, or None."""
        return self._bias

    def with_product(self: _Self, product: Product) -> _Self:
        """The same layer with another product; everything else is shared.

        Raises
        ------
        ValueError
            If its shape is not ``(K, N)``.
        """
        made = copy.copy(self)
        made.use(product)
        return made

    def use(self, product: Product) -> None:
        """Multiply with another product from now on; the bias stays.

        Raises
        ------
        ValueError
            If its shape is not ``(K, N)``.
        """
        self._use(product, self._bias, type(self).__name__)

    def _use(self, product: Product, bias: Float32 | None, called: str) -> None:
        if tuple(product.shape) != (self._k, self._n):
            raise ValueError(
                f"{called}: the product has shape (K, N) = {tuple(product.shape)}, {(self._k, self._n)} is needed"
            )
        CHANGES.made()  # before and behind, as where attributes are set
        self._bias = bias
        self._packed = None
        if type(product) is PackedProduct:  # others that are derived of it may not take a bias
            product = self._packed = PackedProduct(product.weight, bias)
        self._product = product
        CHANGES.made()

    def __call__(self, x: Any) -> Any:
        """Multiply ``(..., K)`` to ``(..., N)``.

        Parameters
        ----------
        x : ndarray or NpuArray, shape (..., K)

        Returns
        -------
        ndarray or NpuArray, shape (..., N)
            float16 or bfloat16 where `x` is, else float32.

        Raises
        ------
        ValueError
            If `x` has another width than K.
        ModelError
            If no weight was loaded yet.
        """
        if type(x) not in _ARRAYS:
            x = as_floats(x, type(self).__name__)
        if x.shape[-1:] != (self._k,):
            raise ValueError(f"{self!r} takes (..., {self._k}); the input has shape {x.shape}")
        packed = self._packed
        return packed(x) if packed is not None else self._rows(x)

    def _rows(self, x: Any) -> Any:
        """Multiply by a product that takes rows of float32 only."""
        product = self._product
        if product is None:
            raise ModelError(f"{self!r} has no weight yet; load_state_dict loads one")
        if type(x) is not np.ndarray:
            return self._of_other(x)
        rows = x if x.dtype == _F32 else float32_of(x, repr(self))
        y: NDArray[Any] = product(np.ascontiguousarray(rows.reshape(-1, self._k)))
        if self._bias is not None:
            y = y + self._bias
        if x.dtype != _F32:
            y = rounded_to(y, x.dtype)
        return y if x.ndim == 2 else y.reshape(*x.shape[:-1], self._n)

    def _weight(self, path: str) -> Float32:
        unpack = getattr(self.product, "unpack", None)
        if unpack is None:
            raise ModelError(f"the weight of {path or self!r} cannot be read back from a {type(self.product).__name__}")
        weight: Float32 = unpack()
        return weight

    def _loaded(self, weight: Callable[[], NDArray[Any]], bias: Float32 | None, pack: Pack | None, path: str) -> None:
        try:
            product = packed_by(pack, weight, path) if pack else product_of(weight(), self._scheme, self._device)
            named(product, path)
        except NotFiniteError as error:
            raise NotFiniteError(f"{path or repr(self)}: {error}") from error
        self._use(product, bias, path or type(self).__name__)


class Linear(_Multiplying):
    """A linear layer, ``x @ weight.T + bias``, with the weight on the NPU.

    Parameters
    ----------
    in_features, out_features : int
        K and N.
    bias : bool
        Whether there is a bias; it is added in the pass that stores the result.
    scheme : Scheme or str
        How the weight is represented, as for `npumatmul.pack`; ``"float32"``: numpy computes it, as a reference.
    device : Device or str, optional
        The current device at the time of loading by default.

    Raises
    ------
    ValueError, TypeError
        If sizes are not positive, or there is no such scheme for floats.

    Notes
    -----
    Parameters are ``weight``, ``(N, K)`` as of `torch.nn.Linear`, and ``bias``, ``(N,)``. There is no weight before
    `load_state_dict`, `from_arrays` or `from_packed`; with scheme ``"float32"`` one of float32 is not copied. Bounds
    of errors are those of `npumatmul.matmul`; a float16 result is rounded once more, by 2**-11 of itself.

    Examples
    --------
    >>> import numpy as np
    >>> from npumatmul import nn
    >>> layer = nn.Linear(3, 2)
    >>> layer.load_state_dict({"weight": np.ones((2, 3)), "bias": np.array([0.0, 1.0])})
    LoadResult(missing_keys=[], unexpected_keys=[])
    >>> layer(np.ones((4, 1, 3), np.float32))[0]
    array([[3., 4.]], dtype=float32)
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        scheme: Scheme | SchemeName | str = "w16a16",
        device: Device | str | None = None,
    ) -> None:
        check_size("Linear", in_features=in_features, out_features=out_features)
        super().__init__(in_features, out_features, bool(bias), scheme, device)

    def __repr__(self) -> str:
        return f"Linear({self._k}, {self._n}, bias={self._has_bias})"

    @property
    def in_features(self) -> int:
        """K."""
        return self._k

    @property
    def out_features(self) -> int:
        """N."""
        return self._n

    @classmethod
    def from_arrays(
        cls,
        weight: ArrayLike,
        bias: ArrayLike | None = None,
        *,
        scheme: Scheme | SchemeName | str = "w16a16",
        device: Device | str | None = None,
    ) -> Linear:
        """Make a layer of a weight ``(N, K)`` and a bias ``(N,)``.

        Raises
        ------
        ValueError
            If shapes do not fit together.
        TypeError
            If they are not floats.

        Examples
        --------
        >>> import numpy as np
        >>> from npumatmul import nn
        >>> nn.Linear.from_arrays(np.eye(3), scheme="float32")(np.arange(3, dtype=np.float32))
        array([0., 1., 2.], dtype=float32)
        """
        w = floats(weight, "weight")
        if w.ndim != 2 or 0 in w.shape:
            raise ValueError(f"Linear.from_arrays: a weight is (N, K), outputs by inputs; this has shape {w.shape}")
        layer = cls(w.shape[1], w.shape[0], bias is not None, scheme=scheme, device=device)
        layer._loaded(
            lambda: w, None if bias is None else _checked_bias(bias, w.shape[0], "Linear.from_arrays"), None, ""
        )
        return layer

    @classmethod
    def from_packed(cls, weight: PackedWeight, bias: ArrayLike | None = None) -> Linear:
        """Make a layer of a packed weight ``(K, N)``.

        Raises
        ------
        TypeError
            If it is none, or its scheme is one of integers.

        Examples
        --------
        >>> import numpy as np
        >>> import npumatmul as npu
        >>> from npumatmul import nn
        >>> nn.Linear.from_packed(npu.pack(np.ones((4, 2), np.float32), "w8a8"))
        Linear(4, 2, bias=False)
        """
        if not isinstance(weight, PackedWeight):
            raise TypeError(f"Linear.from_packed: {type(weight).__name__} is no PackedWeight; npumatmul.pack makes one")
        if weight.scheme.result != np.float32:
            raise TypeError(
                f"Linear.from_packed: scheme {weight.scheme.name!r} gives {weight.scheme.result} and takes no floats; "
                "pack the weight as floats"
            )
        return cls.from_product(PackedProduct(weight), bias)

    @classmethod
    def from_product(cls, product: Product, bias: ArrayLike | None = None) -> Linear:
        """Make a layer of any `Product`."""
        k, n = product.shape
        layer = cls(k, n, bias is not None)
        layer._use(product, None if bias is None else _checked_bias(bias, n, "Linear.from_product"), "Linear")
        return layer

    @property
    def recordable(self) -> bool:
        """With a packed weight alone: other products may do anything besides."""
        return self._packed is not None

    def own_shapes(self) -> dict[str, tuple[int, ...]]:
        """``weight``, and ``bias`` if there is one."""
        shapes: dict[str, tuple[int, ...]] = {"weight": (self._n, self._k)}
        return {**shapes, "bias": (self._n,)} if self._has_bias else shapes

    def own_values(self, name: str, path: str) -> NDArray[Any]:
        """The weight as it is stored, or the bias."""
        if name == "weight":
            return self._weight(path)
        if self._bias is None:
            raise ModelError(f"the bias of {path or self!r} was not loaded yet")
        return self._bias

    def load_own(self, names: list[str], take: Take, pack: Pack | None, path: str) -> None:
        """Load the weight, the bias, or both."""
        bias = np.array(take("bias"), np.float32) if "bias" in names else self._bias
        if "weight" in names:
            self._loaded(lambda: take("weight"), bias, pack, path)
        elif self._product is not None:
            self._use(self._product, bias, path)
        else:
            self._bias = bias


class LinearGroup(_Multiplying):
    """Linear layers with one input, as one product: q, k and v, or gate and up.

    Their rows stand below one another in one weight: that is exact, and one product is faster than several.

    Parameters
    ----------
    in_features : int
        K of all of them.
    out_features : mapping of str to int
        Their names and numbers of outputs, in order.
    bias : bool
        Whether they have biases.
    fused : str, optional
        Name of the one tensor in which a model keeps all of them, such as ``"qkv_proj"``; by default there is one of
        each.
    scheme, device
        As for `Linear`.

    Raises
    ------
    ValueError, TypeError
        As `Linear`.

    Notes
    -----
    The group has no name of its own in paths of parameters: as attribute `qkv` of ``self_attn`` its parameters are
    ``self_attn.q_proj.weight`` and so on. `pack` of `load_state_dict` is called once, with ``self_attn.qkv``.

    Examples
    --------
    >>> import numpy as np
    >>> from npumatmul import nn
    >>> group = nn.LinearGroup(2, {"gate_proj": 3, "up_proj": 3}, scheme="float32")
    >>> group.parameter_shapes()
    {'gate_proj.weight': (3, 2), 'up_proj.weight': (3, 2)}
    >>> _ = group.load_state_dict({"gate_proj.weight": np.ones((3, 2)), "up_proj.weight": np.zeros((3, 2))})
    >>> gate, up = group(np.ones((1, 2), np.float32))
    >>> gate, up
    (array([[2., 2., 2.]], dtype=float32), array([[0., 0., 0.]], dtype=float32))
    """

    is_named: ClassVar[bool] = False

    def __init__(
        self,
        in_features: int,
        out_features: Mapping[str, int],
        bias: bool = False,
        *,
        fused: str | None = None,
        scheme: Scheme | SchemeName | str = "w16a16",
        device: Device | str | None = None,
    ) -> None:
        if not isinstance(out_features, Mapping):
            raise TypeError(
                "LinearGroup: out_features has the size of each layer by its name, such as "
                f"{{'q_proj': 64, 'k_proj': 32}}, and is {out_features!r}"
            )
        check_size("LinearGroup", in_features=in_features, **out_features)
        if not out_features:
            raise ValueError("LinearGroup: out_features names no layers")
        super().__init__(in_features, sum(out_features.values()), bool(bias), scheme, device)
        self._sizes, self._fused = dict(out_features), fused
        ends = np.cumsum(list(out_features.values())).tolist()
        self._parts = tuple(
            (..., slice(stop - size, stop)) for size, stop in zip(out_features.values(), ends, strict=True)
        )

    def __repr__(self) -> str:
        return f"LinearGroup({self._k}, {self._sizes}, bias={self._has_bias})"

    def __call__(self, x: Any) -> Any:
        """Multiply once.

        Parameters
        ----------
        x : ndarray or NpuArray, shape (..., K)

        Returns
        -------
        tuple of ndarray or NpuArray
            The results of the layers in their order, views of one array.

        Raises
        ------
        ValueError, ModelError
            As `Linear`.
        """
        y = super().__call__(x)
        return tuple([y[part] for part in self._parts])

    @property
    def recordable(self) -> bool:
        """As of `Linear`."""
        return self._packed is not None

    def whole(self, x: Any) -> Any:
        """Multiply once, and leave the results of the layers beside each other, ``(..., N)``."""
        return super().__call__(x)

    def split(self, y: NDArray[Any]) -> tuple[NDArray[Any], ...]:
        """Views of the layers' results in what the product gave."""
        return tuple([y[part] for part in self._parts])

    def _tensors(self) -> dict[str, int]:
        return self._sizes if self._fused is None else {self._fused: self._n}

    def own_shapes(self) -> dict[str, tuple[int, ...]]:
        """``<name>.weight`` of each layer and ``<name>.bias`` if there are biases."""
        shapes: dict[str, tuple[int, ...]] = {}
        for name, n in self._tensors().items():
            shapes[f"{name}.weight"] = (n, self._k)
            if self._has_bias:
                shapes[f"{name}.bias"] = (n,)
        return shapes

    def own_values(self, name: str, path: str) -> NDArray[Any]:
        """Rows of the weight as they are stored, or a part of the bias."""
        layer, _, kind = name.rpartition(".")
        values = self._weight(path) if kind == "weight" else self._bias
        if values is None:
            raise ModelError(f"the bias of {path or self!r} was not loaded yet")
        start = 0
        for each, n in self._tensors().items():
            if each == layer:
                break
            start += n
        part: NDArray[Any] = values[start : start + n]
        return part

    def load_own(self, names: list[str], take: Take, pack: Pack | None, path: str) -> None:
        """Load all weights, all biases, or both."""
        given = {kind: self._given(names, kind, path) for kind in ("weight", "bias")}
        bias = np.asarray(self._gathered("bias", take), np.float32) if given["bias"] else self._bias
        if given["weight"]:
            self._loaded(lambda: self._gathered("weight", take), bias, pack, path)
        elif self._product is not None:
            self._use(self._product, bias, path)
        else:
            self._bias = bias

    def _given(self, names: Sequence[str], kind: str, path: str) -> bool:
        """Whether weights, or biases, were given: of all layers or of none."""
        wanted = [f"{name}.{kind}" for name in self._tensors()]
        lacking = [name for name in wanted if name not in names]
        if 0 < len(lacking) < len(wanted):
            raise ModelError(f"load_state_dict: {path or self!r} is one product and needs {', '.join(lacking)}, too")
        return not lacking

    def _gathered(self, kind: str, take: Take) -> NDArray[Any]:
        """The rows of all layers in one array."""
        wanted = {f"{name}.{kind}": n for name, n in self._tensors().items()}
        first = take(next(iter(wanted)))
        if len(wanted) == 1:
            return np.array(first, np.float32) if kind == "bias" else first
        rows = np.empty((self._n, *first.shape[1:]), first.dtype)
        start = 0
        for i, (name, n) in enumerate(wanted.items()):
            values = first if i == 0 else take(name)
            if values.dtype != rows.dtype:
                rows = rows.astype(np.float32)
            rows[start : start + n] = values
            start += n
        return rows


def _checked_bias(bias: ArrayLike, n: int, called: str) -> Float32:
    values = floats(bias, "bias")
    if values.shape != (n,):
        raise ValueError(f"{called}: the bias has shape {values.shape}; the weight has N = {n}")
    return np.array(values, np.float32)
