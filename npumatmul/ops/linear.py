"""`linear`: a layer of a network in one pass."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, overload

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from npumatmul.device.device import Device
from npumatmul.host.epilogue import Activation, Epilogue
from npumatmul.ops.array.array import NpuArray
from npumatmul.ops.matmul import matmul
from npumatmul.ops.packed.weight import PackedWeight
from npumatmul.ops.typed import How, Operand, Unpack
from npumatmul.quant.names import Precision, SchemeName
from npumatmul.quant.schemes import Scheme

__all__ = ["linear"]


@overload
def linear(  # type: ignore[overload-overlap]
    x: NpuArray, w: Operand, bias: ArrayLike | None = None, activation: Activation | None = None, *,
    transposed: bool | None = None, dtype: DTypeLike | None = None, **how: Unpack[How],
) -> NpuArray: ...  # fmt: skip
@overload
def linear(
    x: ArrayLike, w: Operand, bias: ArrayLike | None = None, activation: Activation | None = None, *,
    transposed: bool | None = None, dtype: DTypeLike | None = None, **how: Unpack[How],
) -> NDArray[Any]: ...  # fmt: skip
def linear(
    x: ArrayLike,
    w: Operand,
    bias: ArrayLike | None = None,
    activation: Activation | None = None,
    *,
    transposed: bool | None = None,
    dtype: DTypeLike | None = None,
    scheme: Scheme | SchemeName | None = None,
    precision: Precision | None = None,
    device: Device | str | None = None,
) -> Any:
    """Linear layer in one pass: ``activation(x @ w + bias)``, or ``activation(x @ w.T + bias)`` with `transposed`.

    A weight is (K, N) by default, inputs by outputs, as of numpy's ``x @ w``; PyTorch's `torch.nn.Linear` and GGUF
    files store (N, K), outputs by inputs. Of a square weight no shape tells which it is.

    Parameters
    ----------
    x : array_like, shape (..., K)
    w : array_like, shape (K, N), or (N, K) with `transposed`; or PackedWeight
        Of a packed weight the orientation was settled by `pack`.
    bias : array_like, shape (N,), optional
        Added in float32, before the result is converted to `dtype`; or in int32, for integers without an activation.
    activation : str, optional
        ``"relu"``, ``"gelu"``, ``"gelu_tanh"``, ``"silu"`` or ``"relu2"``, as for `Epilogue`.
    transposed : bool, optional
        True: `w` is (N, K), as PyTorch has it, and as ``torch.nn.functional.linear(x, w, bias)`` takes it. By default
        (K, N), but of a square tensor of PyTorch it has to be said.
    dtype : data-type, optional
        Type of the result.
    scheme, precision, device
        As for `matmul`.

    Returns
    -------
    ndarray, shape (..., N)

    Raises
    ------
    ValueError
        As `matmul`; or if `w` is the wrong way round, may be so, or is packed and `transposed` is given.
    TypeError
        As `matmul`.

    Examples
    --------
    >>> import numpy as np
    >>> import npumatmul as npu
    >>> npu.linear(np.ones((2, 3), np.float32), -np.ones((3, 2), np.float32), [1.0, 4.0], "relu")
    array([[0., 1.],
           [0., 1.]], dtype=float32)
    >>> npu.linear(np.ones((2, 3), np.float32), np.ones((5, 3), np.float32), transposed=True).shape
    (2, 5)
    """
    if transposed is not None or type(w) is not PackedWeight:
        w = _as_inputs_by_outputs(x, w, transposed)
    epilogue = None if activation is None else _applying(activation)
    return matmul(
        x, w, dtype=dtype, scheme=scheme, precision=precision, epilogue=epilogue, bias=bias, device=device
    )  # fmt: skip


def _as_inputs_by_outputs(x: Any, w: Any, transposed: bool | None) -> Any:
    """The weight as (K, N), once it is clear that it is meant so."""
    if isinstance(w, PackedWeight):
        raise ValueError("linear: w is packed, and which way round was said to pack; leave transposed out")
    if transposed not in (None, True, False):
        raise TypeError(f"linear: transposed is {transposed!r}; it can be True or False")
    shape = tuple(getattr(w, "shape", ())) or np.shape(w)
    if len(shape) != 2:
        raise ValueError(f"linear: a weight has 2 dimensions, (K, N) or (N, K); this w has shape {shape}")
    k = (tuple(getattr(x, "shape", ())) or np.shape(x) or (None,))[-1]
    if transposed is None and shape[0] == shape[1] and type(w).__module__.partition(".")[0] == "torch":
        raise ValueError(
            f"linear: w is a square tensor {shape} and may be either way round; say transposed=True if it is (N, K), "
            "as torch.nn.Linear.weight is, or transposed=False for (K, N)"
        )
    if shape[1 if transposed else 0] != k:
        found, other = ("(N, K)", "(K, N)") if transposed else ("(K, N)", "(N, K)")
        hint = f"; it is {other}: give transposed={not transposed}" if shape[0 if transposed else 1] == k else ""
        raise ValueError(f"linear: x has K = {k}, but w of shape {shape} is taken as {found}{hint}")
    return w.T if transposed and hasattr(w, "T") else np.asarray(w).T if transposed else w


@lru_cache(maxsize=32)
def _applying(activation: Activation) -> Epilogue:
    return Epilogue(activation=activation)
