"""`Module`: layers that hold others, with parameters that are found by PyTorch's names."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, NamedTuple

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from npumatmul.errors import ModelError
from npumatmul.files.reading import shown
from npumatmul.host import dlpack
from npumatmul.nn.product import Pack
from npumatmul.nn.recordable import CHANGES
from npumatmul.ops import NpuArray
from npumatmul.ops.array.array import unread

__all__ = [
    "LoadResult",
    "Module",
    "Rows",
    "Take",
    "as_floats",
    "check_number",
    "check_size",
    "float32_of",
    "floats",
    "initial",
    "rounded_to",
]

Rows = Callable[[NDArray[np.int64]], NDArray[np.float32]]
"""From row numbers ``(T,)`` to rows of a table ``(T, dim)``, which stays where it is."""

_FLOATS = frozenset(np.dtype(each) for each in (np.float32, np.float16, ml_dtypes.bfloat16))

#: So many names are listed in a message; of the others it says how many there are.
_LISTED = 8


class Take:
    """Values that a module is to load, by the names of its own parameters.

    Parameters
    ----------
    mapping : mapping
    stem : str
        What names in the mapping begin with.
    """

    def __init__(self, mapping: Mapping[str, Any], stem: str) -> None:
        self._mapping, self._stem = mapping, stem

    def __call__(self, name: str) -> NDArray[Any]:
        """The values, as an array of floats."""
        return floats(self._mapping[self._stem + name], self._stem + name)

    def rows(self, name: str) -> Rows | None:
        """What reads rows of a table that need not be in memory; None if the mapping has no such method."""
        rows_of = getattr(self._mapping, "rows", None)
        return rows_of(self._stem + name) if callable(rows_of) else None


class LoadResult(NamedTuple):
    """What `Module.load_state_dict` did not find a match for, named as in PyTorch.

    Attributes
    ----------
    missing_keys : list of str
        Parameters that the mapping lacks: they are as they were.
    unexpected_keys : list of str
        Names in the mapping for which there is no parameter.
    """

    missing_keys: list[str]
    unexpected_keys: list[str]


class Module:
    """A layer, with parameters and other modules as attributes.

    Public attributes that are ndarrays are parameters, those that are modules, or lists of them, are its children.
    Paths are made of the attributes' names, as in PyTorch: ``layers.0.mlp.down_proj.weight``.

    Examples
    --------
    >>> import numpy as np
    >>> from npumatmul import nn
    >>> class Scaled(nn.Module):
    ...     def __init__(self):
    ...         self.linear = nn.Linear(2, 3, bias=False, scheme="float32")
    ...         self.scale = np.ones(3, np.float32)
    ...     def __call__(self, x):
    ...         return self.linear(x) * self.scale
    >>> layer = Scaled()
    >>> layer.parameter_shapes()
    {'scale': (3,), 'linear.weight': (3, 2)}
    >>> layer.load_state_dict({"linear.weight": np.ones((3, 2)), "scale": np.full(3, 2.0)})
    LoadResult(missing_keys=[], unexpected_keys=[])
    >>> layer(np.ones((1, 2), np.float32))
    array([[4., 4., 4.]], dtype=float32)
    """

    #: Whether paths of its parameters begin with the name by which its parent has it.
    is_named: ClassVar[bool] = True

    #: Names of its own that checkpoints hold beside parameters, and that no result depends on.
    unused: ClassVar[frozenset[str]] = frozenset()

    def __setattr__(self, name: str, value: object) -> None:
        if name[0] == "_":
            object.__setattr__(self, name, value)
            return
        CHANGES.made()  # an interrupt may come behind
        object.__setattr__(self, name, value)
        CHANGES.made()  # another thread may have recorded meanwhile

    @property
    def recordable(self) -> bool:
        """Whether it does the same steps whatever values it is given, all of which a recorder hears of.

        Others are called again where a program of recorded steps comes to them (`npumatmul.running.recording`), and may
        be called twice for the same rows. A class that does not say it, derived of one that does or not, is called by
        Python as ever, and no program is made of what it is a part of.
        """
        return False

    def __repr__(self) -> str:
        """Return the class and what it holds, as PyTorch shows it."""
        lines = [f"  ({name}): {each!r}".replace("\n", "\n  ") for name, each in self.children()]
        return "\n".join([f"{type(self).__name__}(", *lines, ")"]) if lines else f"{type(self).__name__}()"

    # ---- what there is -----------------------------------------------------------------------------------------------

    def children(self) -> Iterator[tuple[str, Module]]:
        """Names and modules of the next level, in the order in which they were set."""
        for name, value in vars(self).items():
            if isinstance(value, Module):
                yield name, value
            elif isinstance(value, list | tuple):
                for i, each in enumerate(value):
                    if isinstance(each, Module):
                        yield f"{name}.{i}", each

    def named_modules(self, prefix: str = "") -> Iterator[tuple[str, Module]]:
        """Paths and modules, this one first, with the empty path.

        Parameters
        ----------
        prefix : str
            What paths begin with.
        """
        yield prefix, self
        for name, child in self.children():
            yield from child.named_modules(f"{prefix}.{name}" if prefix else name)

    def _owners(self, prefix: str = "") -> Iterator[tuple[str, str, Module]]:
        """Of all modules: what their parameters' paths begin with, their own path, and themselves."""
        yield prefix, prefix.removesuffix("."), self
        for name, child in self.children():
            for stem, path, module in child._owners(f"{prefix}{name}."):
                if not child.is_named:
                    stem = prefix + stem.removeprefix(f"{prefix}{name}.")
                yield stem, path, module

    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of all parameters by their paths; of weights that were not loaded yet, too."""
        return {
            f"{stem}{name}": shape for stem, _, module in self._owners() for name, shape in module.own_shapes().items()
        }

    def named_parameters(self) -> Iterator[tuple[str, NDArray[Any]]]:
        """Paths and values of all parameters.

        A weight on the NPU is read back, as it is stored there, when its turn comes.

        Raises
        ------
        ModelError
            If a weight was not loaded yet, or cannot be read back.
        """
        for stem, path, module in self._owners():
            for name in module.own_shapes():
                yield f"{stem}{name}", module.own_values(name, path)

    def state_dict(self) -> dict[str, NDArray[Any]]:
        """All parameters by their paths, as `named_parameters` gives them."""
        return dict(self.named_parameters())

    # ---- loading -----------------------------------------------------------------------------------------------------

    def load_state_dict(
        self,
        mapping: Mapping[str, Any],
        strict: bool = True,
        *,
        prefix: str = "",
        pack: Pack | None = None,
    ) -> LoadResult:
        """Load parameters by name.

        Values are taken one at a time, so that of a mapping which reads files no more than one is in memory besides
        what the modules keep. Linear layers keep the product, not the array.

        Parameters
        ----------
        mapping : mapping of str to array_like
            float16, bfloat16, float32 or float64. If it has a method ``shape(name)``, no value is read before all
            shapes are known to be right; otherwise the shapes of arrays are looked at first.
        strict : bool
            Whether all parameters have to be there, and nothing else below `prefix`.
        prefix : str
            What names in the mapping begin with, such as ``"model.layers.0."``; others are not looked at.
        pack : callable, optional
            From a float32 weight ``(N, K)`` and the path of its layer (with `prefix`, without ``.weight``) to the
            `Product` that the layer is to use, instead of what its own scheme gives.

        Returns
        -------
        LoadResult
            What did not match; nothing if `strict`.

        Raises
        ------
        ModelError
            If names or shapes do not fit: the message lists them, and nothing has changed.
        TypeError
            If `mapping` is none, or a value is no array of floats; those before it have been loaded.
        NotFiniteError
            If a weight that is to be quantized holds an inf or nan; the message says which.

        Examples
        --------
        >>> import numpy as np
        >>> from npumatmul import nn
        >>> layer = nn.Linear(4, 2, scheme="float32")
        >>> layer.load_state_dict({"weight": np.zeros((2, 4)), "bais": np.zeros(2)})
        Traceback (most recent call last):
        npumatmul.errors.ModelError: load_state_dict of Linear: 1 of 2 parameters is missing: bias; 1 name is left over: bais
        """  # noqa: E501
        if not isinstance(mapping, Mapping):
            raise TypeError(f"load_state_dict takes a mapping from names to arrays, not a {type(mapping).__name__}")
        shapes = self.parameter_shapes()
        missing = [name for name in shapes if prefix + name not in mapping]
        below = [name for name in mapping if name.startswith(prefix)] if prefix else list(mapping)
        unused = {f"{stem}{name}" for stem, _, module in self._owners() for name in module.unused}
        left = [name for name in below if name[len(prefix) :] not in shapes and name[len(prefix) :] not in unused]
        if strict and (missing or left):
            raise ModelError(f"load_state_dict of {type(self).__name__}: {_unmatched(missing, left, prefix, shapes)}")
        given = [name for name in shapes if prefix + name in mapping]
        self._check_shapes(mapping, {prefix + name: shapes[name] for name in given})
        ready = set(given)
        for stem, path, module in self._owners():
            own = [name for name in module.own_shapes() if stem + name in ready]
            if own:
                module.load_own(own, Take(mapping, prefix + stem), pack, (prefix + path).removesuffix("."))
        return LoadResult(missing, left)

    def _check_shapes(self, mapping: Mapping[str, Any], wanted: Mapping[str, tuple[int, ...]]) -> None:
        shape_of = getattr(mapping, "shape", None)
        wrong = []
        for name, shape in wanted.items():
            found = tuple(shape_of(name)) if callable(shape_of) else _shape(mapping[name])
            if found != shape:
                wrong.append(f"{name} has shape {found} instead of {shape}")
        if wrong:
            raise ModelError(f"load_state_dict of {type(self).__name__}: {_listed(wrong, '; ')}")

    # ---- what kinds of modules do in their own way -----------------------------------------------------------------

    def own_shapes(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes of parameters that are this module's and not its children's."""
        return {
            name: value.shape
            for name, value in vars(self).items()
            if isinstance(value, np.ndarray) and not name.startswith("_")
        }

    def own_values(self, name: str, path: str) -> NDArray[Any]:
        """The values of one of them; `path` is the module's, for messages."""
        value: NDArray[Any] = getattr(self, name)
        return value

    def load_own(self, names: list[str], take: Take, pack: Pack | None, path: str) -> None:
        """Load some of them; `path` is the module's in the mapping."""
        for name in names:
            setattr(self, name, np.array(take(name), np.float32, order="C"))

    # ---- calls ------------------------------------------------------------------------------------------------------

    def _of_other(self, x: Any, *args: Any, **options: Any) -> Any:
        """Call the layer with what is no plain ndarray: an NpuArray gives an NpuArray, others become ndarrays."""
        if not isinstance(x, NpuArray):
            return self(as_floats(x, type(self).__name__), *args, **options)  # type: ignore[operator]
        result = self(x.numpy(writable=False), *args, **options)  # type: ignore[operator]
        return unread(np.ascontiguousarray(result), result.shape, x.device)


def as_floats(x: Any, called: str) -> NDArray[Any]:
    """What a layer was given, as an ndarray of floats."""
    if isinstance(x, np.ma.MaskedArray):
        raise TypeError(f"{called}: the input is a masked array, whose mask would be lost; write x.filled(0)")
    exchanged = hasattr(type(x), "__dlpack__") and not isinstance(x, np.ndarray | np.generic)
    array = dlpack.take(x) if exchanged else np.asarray(x)
    if array.dtype == np.float64 and not hasattr(type(x), "dtype"):
        return array.astype(np.float32)  # numbers of Python have no width of their own
    if array.dtype.newbyteorder("=") not in _FLOATS:
        raise TypeError(_refused(called, array.dtype))
    return array


def float32_of(x: NDArray[Any], called: str) -> NDArray[np.float32]:
    """An input as float32; without a copy if it is.

    Raises
    ------
    TypeError
        If it is of another type than layers take.
    """
    if x.dtype.newbyteorder("=") not in _FLOATS:
        raise TypeError(_refused(called, x.dtype))
    return x.astype(np.float32, copy=False)


def rounded_to(y: NDArray[np.float32], dtype: np.dtype[Any]) -> NDArray[Any]:
    """A result in the type of what it was made of."""
    with np.errstate(over="ignore"):  # beyond float16's range it is an infinity, as in numpy
        return y.astype(dtype.newbyteorder("="), copy=False)


def _refused(called: str, dtype: np.dtype[Any]) -> str:
    return f"{called}: the input is {dtype}; layers take float32, float16 and bfloat16, write x.astype(np.float32)"


def floats(value: Any, name: str) -> NDArray[Any]:
    """A parameter's value as an ndarray of floats, of whatever width.

    Raises
    ------
    TypeError
        If it is something else; the message says which name has it.
    """
    exchanged = hasattr(type(value), "__dlpack__") and not isinstance(value, np.ndarray | np.generic)
    array = dlpack.take(value.detach() if hasattr(value, "detach") else value) if exchanged else np.asarray(value)
    if array.dtype == np.float64:
        return array.astype(np.float32)
    if array.dtype.newbyteorder("=") not in _FLOATS:
        raise TypeError(
            f"load_state_dict: {name} is {array.dtype}; parameters are float16, bfloat16, float32 or float64"
        )
    return array


def _shape(value: Any) -> tuple[int, ...]:
    shape = getattr(value, "shape", None)
    return np.shape(value) if shape is None else tuple(shape)


def _unmatched(missing: list[str], left: list[str], prefix: str, shapes: Mapping[str, tuple[int, ...]]) -> str:
    parts = []
    if missing:
        verb = "is" if len(missing) == 1 else "are"
        names = _listed([prefix + name for name in missing])
        parts.append(f"{len(missing)} of {len(shapes)} parameters {verb} missing: {names}")
    if left:
        said = "1 name is" if len(left) == 1 else f"{len(left)} names are"
        parts.append(f"{said} left over: {_listed(left)}")
    return "; ".join(parts)


def _listed(names: list[str], between: str = ", ") -> str:
    more = len(names) - _LISTED
    return between.join(names[:_LISTED]) + (f"{between}and {more} more" if more > 0 else "")


def initial(value: float, *shape: int) -> NDArray[np.float32]:
    """What a parameter is until one is loaded: a value everywhere, which takes no memory and cannot be written to.

    So a model can be made, and its shapes be held against a file, whatever sizes somebody wrote into a configuration.
    """
    return np.broadcast_to(np.float32(value), shape)


def check_size(called: str, **sizes: int) -> None:
    """Raise if one of a layer's sizes is no positive integer."""
    for name, value in sizes.items():
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
            raise ValueError(f"{called}: {name} is {value!r}; it has to be an integer of 1 or more")


def check_number(called: str, **numbers: float) -> None:
    """Raise if one of a layer's constants is no finite number."""
    for name, value in numbers.items():
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float | np.number)
            or not abs(value) <= sys.float_info.max
        ):
            raise ValueError(f"{called}: {name} is {shown(value)}; it has to be a finite number")
