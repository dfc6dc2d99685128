"""A forked child has no threads of its parent's: it waits for nobody, and takes nothing away that is the parent's."""

from __future__ import annotations

import os
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llm_models import write_tokenizer

import npumatmul as npu
import npumatmul.llm
from npumatmul import nn
from npumatmul.errors import ClosedError
from npumatmul.llm.tokenizers.json_tokenizer import JSONTokenizer

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="only systems with fork have such children")


def in_child(use: Callable[[], bool]) -> bool:
    """Whether a forked child finds something true; one that waits for ever is killed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of threads
        child = os.fork()
    if child == 0:
        try:
            os._exit(0 if use() else 1)
        except BaseException:
            os._exit(2)
    for _ in range(1000):
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status) == 0
        time.sleep(0.02)
    os.kill(child, 9)
    os.waitpid(child, 0)
    return False


def told(use: Callable[[], object]) -> bool:
    try:
        use()
    except ClosedError as error:
        return "cannot be used after a fork" in str(error)
    return False


class Holding:
    """A thread that holds something until it is let go."""

    def __init__(self, hold: Callable[[Callable[[], None]], object]) -> None:
        self.held, self.go_on = threading.Event(), threading.Event()
        self.thread = threading.Thread(target=hold, args=(self.wait,))
        self.thread.start()
        assert self.held.wait(60)

    def wait(self) -> None:
        self.held.set()
        assert self.go_on.wait(60)

    def end(self) -> None:
        self.go_on.set()
        self.thread.join()


@pytest.mark.parametrize("held", ["turn", "line", "kept"])
def test_a_model_in_a_child_says_that_it_is_the_parents(tiny: Any, held: str) -> None:
    with npumatmul.llm.load(tiny.path, "float32") as model:
        started = model.generate("ab", max_tokens=4)
        next(started)
        what = {"turn": model._turns.turn, "line": lambda: model._turns._changed, "kept": lambda: model.prefixes._lock}[
            held
        ]

        def hold(wait: Callable[[], None]) -> None:
            with what():
                wait()

        def use() -> bool:
            uses = (
                lambda: list(model.generate("ab", max_tokens=2)),
                lambda: list(started),
                lambda: model.logits([1, 2]),
                lambda: model.embed(["ab"], pooling="mean"),
            )
            right = all(told(each) for each in uses)
            started.close()
            model.close()
            return right and model.closed and model.tokenizer.decode(model.tokenizer.encode("ab")) == "ab"

        holding = Holding(hold)
        try:
            assert in_child(use)
        finally:
            holding.end()
        assert len(list(started)) == 3
        assert len(list(model.generate("ab", max_tokens=2))) == 2


def test_a_tokenizer_in_a_child_waits_for_nobody(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    tokenizer: Any = JSONTokenizer({"tokenizer.json": (tmp_path / "tokenizer.json").read_bytes()})
    expected = tokenizer.encode("ab")

    def hold(wait: Callable[[], None]) -> None:
        with tokenizer._engine._lock:
            wait()

    holding = Holding(hold)
    try:
        assert in_child(lambda: tokenizer.encode("ab") == expected)
    finally:
        holding.end()


def test_a_child_leaves_weights_that_wait_in_files(tmp_path: Path) -> None:
    with npu.Device("sim:rk3588") as device:
        weights = [npu.pack(np.full((64, 32), value, np.float16), device=device) for value in (1, 2)]
        residency = nn.Residency(limit=weights[0].nbytes, folder=tmp_path)
        products = [residency.keep(nn.PackedProduct(weight)) for weight in weights]
        waiting = sorted(tmp_path.rglob("*.safetensors"))
        assert len(waiting) == 2

        def use() -> bool:
            residency._cleanup()
            return not residency._cleanup.alive

        assert in_child(use)
        assert sorted(tmp_path.rglob("*.safetensors")) == waiting
        x = np.ones((1, 64), np.float32)
        assert [float(np.asarray(each(x))[0, 0]) for each in products] == [64.0, 128.0]
        residency.close()
        assert not list(tmp_path.iterdir())
