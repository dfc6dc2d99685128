"""The forms of answers that people ask for."""

from __future__ import annotations

from npumatmul.llm.constrain.constraint import Format
from npumatmul.llm.constrain.schema import json_grammar
from npumatmul.llm.tokenizers.protocol import Tokenizer

__all__ = ["json_format"]


def json_format(tokenizer: Tokenizer, schema: object = None) -> Format:
    """JSON as the form of answers, by a schema.

    What is chosen always satisfies the schema, if the answer comes to an end. Not everything that satisfies it can be
    chosen: members of objects come in the order of the schema, and indentation is bounded.

    Parameters
    ----------
    tokenizer : Tokenizer
        That of the model.
    schema : dict or bool, optional
        A JSON schema; without one, any JSON object. A keyword that answers cannot be kept to is refused.

    Returns
    -------
    Format
        Its ``constraint()`` is one for an answer.

    Raises
    ------
    ValueError
        If the schema is none, nothing satisfies it, or it has something that answers cannot be kept to.

    Examples
    --------
    >>> import numpy as np
    >>> import npumatmul.llm
    >>> model = npumatmul.llm.load(npumatmul.llm.fetch_demo_model(), "float32")
    >>> form = npumatmul.llm.json_format(model.tokenizer, {"enum": ["red", "green"]})
    >>> constraint, text = form.constraint(), ""
    >>> while not constraint.finished:
    ...     logits = np.zeros(model.vocab_size, np.float32)
    ...     constraint.allowed(logits)
    ...     token = int(logits.argmax())
    ...     constraint.accept(token)
    ...     text += model.tokenizer.decode([token])
    >>> text.strip() in ('"red"', '"green"')
    True
    """
    return Format(json_grammar(schema), tokenizer)
