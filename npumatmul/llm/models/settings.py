"""Values of a model's configuration: each is asked for by name and type, and what nobody asked for is refused.

A value that changes the arithmetic and is not known would give a model that computes something else than it was
trained to. So whoever reads a configuration asks for every value that it understands, and calls `finish` in the end.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, Final

from npumatmul.errors import ModelError
from npumatmul.files.reading import shown

__all__ = ["REQUIRED", "Settings", "is_float32"]

REQUIRED: Final[Any] = object()
"""The default of a value that has to be there."""

MAX_LAYERS = 1 << 12
MAX_SIZE = 1 << 24  # no dimension of a real model comes near; keeps a damaged file from asking for terabytes
MAX_HEAD = 1 << 16  # heads of a layer, and values of one
MAX_WINDOW = 1 << 31  # what some say who mean all tokens
SMALLEST: Final = 2.0**-126  # a normal float32; models compute with no other numbers
LARGEST: Final = 2.0**128 - 2.0**104
MAX_LIST = 1 << 16  # values in a list: as many as there are layers, or half as many as a head has values

_OFF: Final = frozenset(
    {
        "add_cross_attention",
        "alibi",
        "attention_bias",
        "bias",
        "do_sample",
        "early_stopping",
        "finetuned",
        "gradient_checkpointing",
        "is_decoder",
        "is_encoder_decoder",
        "lm_head_bias",
        "mlp_bias",
        "moe",
        "output_attentions",
        "output_hidden_states",
        "output_scores",
        "parallel_attn",
        "qk_layernorm",
        "qk_norm",
        "qkv_bias",
        "remove_invalid_values",
        "return_dict_in_generate",
        "rope_interleaved",
        "tf_legacy_loss",
        "tie_encoder_decoder",
        "use_bfloat16",
        "use_bias",
        "use_bidirectional_attention",
        "use_mrope",
        "use_parallel_residual",
        "use_qk_norm",
        "use_qkv_bias",
        "use_sliding_window",
    }
)  # parts that a model may have, or habits of a program: false says that it has them not, as where nothing is said


def is_float32(value: float) -> bool:
    """Whether a number keeps its digits in the arithmetic of models: it is 0 or a normal float32."""
    return value == 0 or SMALLEST <= abs(value) <= LARGEST


class Settings:
    """The values of one configuration, as a file gives them.

    Parameters
    ----------
    values : mapping
        Values by name.
    error : callable
        Makes the exception for a problem with the model, as `ModelSource.error` does.
    prefix : str, default ""
        What stands before each name in the file.

    Examples
    --------
    >>> from npumatmul.errors import ModelError
    >>> from npumatmul.llm.models.settings import Settings
    >>> settings = Settings({"hidden_size": 64, "surprise": 3}, ModelError)
    >>> settings.integer("hidden_size")
    64
    >>> settings.finish()
    Traceback (most recent call last):
        ...
    npumatmul.errors.ModelError: 'surprise' is 3, and what that means is not known; it may change what the model...
    """

    def __init__(self, values: Mapping[str, Any], error: Callable[[str], ModelError], *, prefix: str = "") -> None:
        self._values = values
        self.error = error
        self._prefix = prefix
        self._asked: set[str] = set()

    def with_default(self, name: str, value: Any) -> Settings:
        """The same values, and one more where there is none of its name."""
        made = Settings({name: value, **self._values}, self.error, prefix=self._prefix)
        made._asked = self._asked
        return made

    @property
    def names(self) -> Collection[str]:
        """Names of all values, of those that are null, too."""
        return self._values.keys()

    def __contains__(self, name: str) -> bool:
        """Whether the file has a value, other than null, of this name."""
        return self._values.get(name) is not None

    def integer(self, name: str, default: Any = REQUIRED) -> Any:
        """Look up an integer."""
        value = self._look_up(name, default)
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if value is not default and (not isinstance(value, int) or isinstance(value, bool)):
            raise self._wrong(name, value, "an integer")
        return value

    def layers(self, name: str) -> int:
        """Look up the number of layers: lists of that length are made before all else is checked."""
        value = self.integer(name)
        if not 1 <= value <= MAX_LAYERS:
            raise self.error(f"{self._named(name)} is {shown(value)}; n_layers must be between 1 and {MAX_LAYERS}")
        return int(value)

    def size(self, name: str, default: Any = REQUIRED) -> Any:
        """Look up an integer between 1 and more than any size of a model."""
        value = self.integer(name, default)
        if value is not default and not 1 <= value <= MAX_SIZE:
            raise self.error(f"{self._named(name)} is {shown(value)}; it must be between 1 and {MAX_SIZE}")
        return value

    def window(self, name: str, default: Any = REQUIRED) -> Any:
        """Look up how many tokens a layer looks back at."""
        value = self.integer(name, default)
        if value is not default and not 0 <= value <= MAX_WINDOW:
            raise self.error(f"{self._named(name)} is {shown(value)}; it must be between 0 and {MAX_WINDOW}")
        return value

    def positive(self, name: str, default: Any = REQUIRED) -> Any:
        """Look up a finite number above 0."""
        value = self.number(name, default)
        if value is not default and value <= 0:
            raise self.error(f"{self._named(name)} is {shown(value)}; it must be a positive number")
        return value

    def number(self, name: str, default: Any = REQUIRED) -> Any:
        """Look up a finite number."""
        value = self._look_up(name, default)
        if value is default:
            return value
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not is_float32(value):
            raise self._wrong(name, value, f"a finite number, 0 or between {SMALLEST:.2g} and {LARGEST:.2g} in size")
        return float(value)

    def flag(self, name: str, default: bool) -> bool:
        """Look up a truth value."""
        value = self._look_up(name, default)
        if not isinstance(value, bool):
            raise self._wrong(name, value, "true or false")
        return value

    def text(self, name: str, default: Any = REQUIRED) -> Any:
        """Look up a string."""
        value = self._look_up(name, default)
        if value is not default and not isinstance(value, str):
            raise self._wrong(name, value, "a string")
        return value

    def sequence(
        self, name: str, kind: type[Any] | tuple[type[Any], ...], length: int | None = None
    ) -> list[Any] | None:
        """Look up a list of values of a kind; None where there is none."""
        value = self._look_up(name, None)
        if value is None:
            return None
        if (
            not isinstance(value, list)
            or len(value) > MAX_LIST
            or not all(isinstance(each, kind) and not isinstance(each, bool) for each in value)
        ):
            raise self._wrong(name, value, "a list of the right kind of values")
        if length is not None and len(value) != length:
            raise self.error(f"{self._named(name)} has {len(value)} values; {length} are needed")
        return value

    def flags(self, name: str, count: int) -> list[bool]:
        """Look up truth values, as many as there are layers."""
        value = self._look_up(name, REQUIRED)
        if not isinstance(value, list) or len(value) != count or not all(isinstance(each, bool) for each in value):
            raise self._wrong(name, value, f"a list of {count} truth values")
        return value

    def is_list(self, name: str) -> bool:
        """Whether a value is a list: some are a number or a list of one for each layer."""
        return isinstance(self._values.get(name), list)

    def group(self, name: str) -> Settings | None:
        """Look up values that have a name together; None where there are none. Whoever asks finishes them, too."""
        value = self._look_up(name, None)
        if value is None:
            return None
        if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
            raise self._wrong(name, value, "a group of values")
        return Settings(value, self.error, prefix=f"{self._prefix}{name}.")

    def must_be(self, name: str, *allowed: Any) -> None:
        """Refuse a value that is none of `allowed`; the first of them is what a missing one means."""
        value = self._look_up(name, allowed[0])
        if not any(value == each and isinstance(value, bool) == isinstance(each, bool) for each in allowed):
            choices = " or ".join(repr(each) for each in allowed)
            raise self.error(f"{self._named(name)} is {shown(value)}; supported: {choices}")

    def ignore(self, names: Iterable[str]) -> None:
        """Note that values of these names do not change what the model computes."""
        self._asked.update(names)

    def finish(self, *, ignored: Collection[str] = ()) -> None:
        """Refuse what nobody asked for; null, parts that are off and what is `ignored` change nothing.

        False is nothing where it leaves a part out; of other names it may say more, as of ``is_causal``.

        Raises
        ------
        npumatmul.errors.ModelError
            If there is a value whose meaning is not known.
        """
        for name, value in self._values.items():
            if value is None or name in self._asked or name in ignored or (value is False and name in _OFF):
                continue
            raise self.error(
                f"{self._named(name)} is {shown(value)}, and what that means is not known; it may change what the "
                f"model computes. Take it out of the file only if it does not"
            )

    def _look_up(self, name: str, default: Any) -> Any:
        self._asked.add(name)
        value = self._values.get(name)
        if value is not None:
            return value
        if default is REQUIRED:
            raise self.error(f"{self._named(name)} is missing")
        return default

    def _wrong(self, name: str, value: object, wanted: str) -> ModelError:
        return self.error(f"{self._named(name)} is {shown(value)}; it must be {wanted}")

    def _named(self, name: str) -> str:
        return repr(f"{self._prefix}{name}")
