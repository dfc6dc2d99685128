"""`MixtureOfExperts`: feed-forward networks of which a router chooses a few for each token."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from npumatmul.device.device import Device
from npumatmul.host.layers import RECORDER, add_to
from npumatmul.nn.expert_names import unstacked
from npumatmul.nn.mlp import MLP, ActivationName
from npumatmul.nn.module import LoadResult, Module, check_number, check_size, float32_of, initial, rounded_to
from npumatmul.nn.product import Float32, Pack
from npumatmul.quant.names import SchemeName
from npumatmul.quant.schemes import Scheme

__all__ = ["MixtureOfExperts", "Router"]


#: Rows of a step of several sequences, at most.
_FEW = 64
#: Experts of a layer that programs have steps of, at most: each of them takes memory for its own.
_MOST = 64
#: Added to sums of sigmoids before weights are divided by them, as LFM2 does it.
_LEAST = np.float32(1e-6)


class Router(Module):
    """Chooses experts for rows, and says with what weight each of them counts.

    It is computed in float32 by numpy whatever the scheme of the experts is: a rounded score may choose another one.

    Parameters
    ----------
    hidden_size : int
        Width of rows.
    experts : int
        How many there are.
    top_k : int
        How many are chosen for each row.
    softmax : {"all", "chosen", None}
        Over whose scores the softmax is taken: those of all experts, or those of the chosen ones. None: instead of it,
        weights are the sigmoids of scores.
    normalize : bool
        Whether weights of the chosen ones are divided by their sum; after a softmax of the chosen ones it is 1 already.
    bias : bool
        Whether scores have one.
    scale : float
        What weights are multiplied by in the end.

    Attributes
    ----------
    weight : ndarray of float32, shape (experts, hidden_size)
    bias : ndarray of float32, shape (experts,), or None

    Raises
    ------
    ValueError
        If there are fewer experts than are to be chosen.

    Examples
    --------
    >>> import numpy as np
    >>> from npumatmul import nn
    >>> router = nn.Router(2, 3, 2, normalize=True)
    >>> _ = router.load_state_dict({"weight": np.array([[1, 0], [0, 1], [-1, -1]])  * 1.0})
    >>> chosen, weights = router(np.array([[0, 2]], np.float32))
    >>> chosen, weights.round(3)
    (array([[1, 0]]), array([[0.881, 0.119]], dtype=float32))
    """

    def __init__(
        self,
        hidden_size: int,
        experts: int,
        top_k: int,
        *,
        softmax: Literal["all", "chosen"] | None = "all",
        normalize: bool = False,
        bias: bool = False,
        scale: float = 1.0,
    ) -> None:
        check_number("Router", scale=scale)
        check_size("Router", hidden_size=hidden_size, experts=experts, top_k=top_k)
        if top_k > experts:
            raise ValueError(f"Router: {top_k} experts are to be chosen, and there are {experts}")
        if softmax not in ("all", "chosen", None):
            raise ValueError(
                f"Router: softmax is {softmax!r}; it is taken over 'all' scores or the 'chosen' ones, or None is"
            )
        self._scale = None if scale == 1 else np.float32(scale)
        self._top_k, self._softmax, self._normalize = top_k, softmax, normalize
        self.weight = initial(0.0, experts, hidden_size)
        self.bias: Float32 | None = initial(0.0, experts) if bias else None

    def __repr__(self) -> str:
        experts, hidden = self.weight.shape
        return f"Router({hidden}, {experts}, {self._top_k}, softmax={self._softmax!r}, normalize={self._normalize})"

    def __call__(self, x: Float32, preference: Float32 | None = None) -> tuple[NDArray[np.int64], Float32]:
        """Choose experts.

        Parameters
        ----------
        x : ndarray of float32, shape (T, hidden_size)
        preference : ndarray of float32, shape (experts,), optional
            What is added to weights for the choice alone.

        Returns
        -------
        chosen : ndarray of int, shape (T, top_k)
            Numbers of experts, the best one first; of equal ones the first.
        weights : ndarray of float32, shape (T, top_k)
            With what their results are multiplied.
        """
        scores = _product(x, self.weight)
        if self.bias is not None:
            scores += self.bias
        if self._softmax == "all":
            scores = _softmax(scores)
        elif self._softmax is None:
            scores = _sigmoid(scores)
        ranked = scores if preference is None else scores + preference
        chosen = np.argsort(-ranked, axis=1, kind="stable")[:, : self._top_k]
        weights: Float32 = np.take_along_axis(scores, chosen, axis=1)
        if self._softmax == "chosen":
            weights = _softmax(weights)
        elif self._normalize:
            total = weights.sum(axis=1, keepdims=True)
            weights /= total + _LEAST if self._softmax is None else total
        if self._scale is not None:
            weights *= self._scale
        return chosen, weights


class MixtureOfExperts(Module):
    """A feed-forward network in many parts, of which each token passes the few that a router chooses.

    Rows of all tokens that chose an expert are multiplied with it in one product, and no others are. An expert that no
    token chose is not touched.

    Parameters
    ----------
    hidden_size : int
        Width of what comes in and goes out.
    intermediate_size : int
        Width inside each expert.
    experts, top_k, softmax, normalize, scale
        As for `Router`.
    preferred : bool
        Whether a parameter says which experts are to be preferred when some are chosen, whatever their weights are.
    act : str
        As for `MLP`; experts are gated.
    bias : bool
        Whether projections of experts, and scores of the router, have biases.
    clamp : tuple of float, optional
        As for `MLP`.
    shared_size : int, optional
        Width inside a further expert that all tokens pass; by default there is none.
    shared_gate : bool
        Whether what that one gives is multiplied by the sigmoid of a product with each row.
    scheme, device
        As for `Linear`: of the experts.

    Attributes
    ----------
    gate : Router
    expert_bias : ndarray of float32, shape (experts,), or None
        What is added to weights for the choice alone.
    experts : list of MLP
    shared_expert : MLP or None
    shared_expert_gate : Module or None

    Raises
    ------
    ValueError
        If a size is not positive, fewer experts are there than are to be chosen, or there is no such activation.

    Notes
    -----
    Parameters are ``gate.weight``, ``experts.0.gate_proj.weight`` and so on, as files have them. `load_state_dict`
    takes stacks of all experts, too: ``experts.gate_up_proj`` and ``experts.down_proj``, as transformers holds them in
    memory, and other names that `unstacked` knows.

    Examples
    --------
    >>> import numpy as np
    >>> from npumatmul import nn
    >>> mlp = nn.MixtureOfExperts(8, 16, experts=4, top_k=2, scheme="float32")
    >>> rng = np.random.default_rng(0)
    >>> shapes = {"gate.weight": (4, 8), "experts.gate_up_proj": (4, 32, 8), "experts.down_proj": (4, 8, 16)}
    >>> mlp.load_state_dict({name: rng.standard_normal(shape) for name, shape in shapes.items()})
    LoadResult(missing_keys=[], unexpected_keys=[])
    >>> mlp(np.ones((5, 8), np.float32)).shape
    (5, 8)
    """

    def __init__(
        self,
        hidden_size: int,
        intermediate_size: int,
        experts: int,
        top_k: int,
        *,
        act: ActivationName | str = "silu",
        bias: bool = False,
        clamp: tuple[float, float] | None = None,
        softmax: Literal["all", "chosen"] | None = "all",
        normalize: bool = False,
        scale: float = 1.0,
        preferred: bool = False,
        shared_size: int | None = None,
        shared_gate: bool = False,
        scheme: Scheme | SchemeName | str = "w16a16",
        device: Device | str | None = None,
    ) -> None:
        shared = {} if shared_size is None else {"shared_size": shared_size}
        check_size("MixtureOfExperts", hidden_size=hidden_size, intermediate_size=intermediate_size, **shared)
        if shared_gate and shared_size is None:
            raise ValueError("MixtureOfExperts: without a shared expert there is nothing for a shared gate")
        how: dict[str, Any] = {"scheme": scheme, "device": device}
        self.gate = Router(hidden_size, experts, top_k, softmax=softmax, normalize=normalize, bias=bias, scale=scale)
        self.expert_bias: Float32 | None = initial(0.0, experts) if preferred else None
        self.experts = [MLP(hidden_size, intermediate_size, act, bias=bias, clamp=clamp, **how) for _ in range(experts)]
        self.shared_expert = None if shared_size is None else MLP(hidden_size, shared_size, act, **how)
        self.shared_expert_gate = _SharedGate(hidden_size) if shared_gate else None
        self._hidden = hidden_size

    def __repr__(self) -> str:
        return f"MixtureOfExperts({len(self.experts)} of {self.experts[0]!r}, {self.gate!r})"

    @property
    def recordable(self) -> bool:
        """Where experts are few and steps alone: those that a token does not pass are left out when steps run again."""
        parts = self.experts if self.shared_expert is None else [*self.experts, self.shared_expert]
        return len(self.experts) <= _MOST and all(each.recordable for each in parts)

    def load_state_dict(
        self, mapping: Mapping[str, Any], strict: bool = True, *, prefix: str = "", pack: Pack | None = None
    ) -> LoadResult:
        """As `Module.load_state_dict`, of stacked experts, too."""
        return super().load_state_dict(unstacked(mapping), strict, prefix=prefix, pack=pack)

    def __call__(self, x: Any) -> Any:
        """Compute it.

        Parameters
        ----------
        x : ndarray or NpuArray, shape (..., hidden_size)

        Returns
        -------
        ndarray or NpuArray, of the shape and dtype of `x`

        Raises
        ------
        ValueError
            If `x` has another width.
        """
        if type(x) is not np.ndarray:
            return self._of_other(x)
        if x.shape[-1:] != (self._hidden,):
            raise ValueError(f"MixtureOfExperts takes (..., {self._hidden}); the input has shape {x.shape}")
        rows = np.ascontiguousarray(float32_of(x, "MixtureOfExperts").reshape(-1, self._hidden))
        recorder = RECORDER.get()
        if recorder is not None and self.recordable:
            y = self._recorded(rows, recorder) if len(rows) == 1 else recorder.called(lambda x, _: self(x), rows, None)
            return rounded_to(y, x.dtype).reshape(x.shape)
        y = np.zeros_like(rows)
        if len(rows):
            chosen, weights = self.choice(rows)
            for number in np.unique(chosen).tolist():
                tokens, places = np.nonzero(chosen == number)
                y[tokens] += self.experts[number](rows[tokens]) * weights[tokens, places, None]
            if self.shared_expert is not None:
                shared = self.shared_expert(rows)
                y += shared if self.shared_expert_gate is None else shared * self.shared_expert_gate(rows)
        return rounded_to(y, x.dtype).reshape(x.shape)

    def _recorded(self, rows: Float32, recorder: Any) -> Float32:
        """One row, for a recorder: the choice is a call, and steps of all experts depend on it."""
        count = len(self.experts)
        made: Float32 = recorder.called(lambda x, _: self._chosen(x), rows, None)
        y = made[:, 2 * count :]
        for number, expert in enumerate(self.experts):
            chosen, weight = made[0, number : number + 1], made[0, count + number : count + number + 1]
            with recorder.unless_nan(chosen):
                add_to(y, expert(rows), weight, not np.isnan(chosen[0]))
        if self.shared_expert is not None:
            shared, gate = self.shared_expert(rows), self.shared_expert_gate
            add_to(y, shared, None if gate is None else recorder.called(lambda x, _: gate(x), rows, None)[0])
        return y

    def _chosen(self, row: Float32) -> Float32:
        """Of each expert 0 if a row passes it, else nan; how much it counts; and zeros, to which results are added."""
        count = len(self.experts)
        made = np.zeros((1, 2 * count + self._hidden), np.float32)
        made[:, :count] = np.nan
        chosen, weights = self.choice(row)
        made[0, chosen[0]], made[0, count + chosen[0]] = 0, weights[0]
        return made

    def choice(self, rows: Float32) -> tuple[NDArray[np.int64], Float32]:
        """Which experts rows ``(T, hidden_size)`` pass, and how much each counts, as `Router` gives it."""
        return self.gate(rows, self.expert_bias)


class _SharedGate(Module):
    """How much of a shared expert each row gets."""

    def __init__(self, hidden_size: int) -> None:
        self.weight = initial(0.0, 1, hidden_size)

    def __call__(self, x: Float32) -> Float32:
        return _sigmoid(_product(x, self.weight))


def _sigmoid(x: Float32) -> Float32:
    with np.errstate(over="ignore"):  # exp of a large number is inf, and 1 / inf is the 0 that is wanted
        y: Float32 = np.exp(-x)
    y += np.float32(1)
    np.divide(np.float32(1), y, out=y)
    return y


def _product(x: Float32, weight: Float32) -> Float32:
    """``x @ weight.T``; of few rows one by one, so that what a token gets does not depend on who comes with it."""
    if 1 < len(x) <= _FEW:
        return np.concatenate([x[i : i + 1] @ weight.T for i in range(len(x))])
    result: Float32 = x @ weight.T
    return result


def _softmax(scores: Float32) -> Float32:
    y: Float32 = np.exp(scores - scores.max(axis=1, keepdims=True))
    y /= y.sum(axis=1, keepdims=True)
    return y
