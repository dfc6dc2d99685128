"""What is there once is not doubled: a copy that is dropped would free what the first one uses."""

from __future__ import annotations

import copy
import gc
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from llm_models import write_tokenizer

import npumatmul as npu
from npumatmul.files.reading import RegularFile
from npumatmul.llm.tokenizers.json_tokenizer import JSONTokenizer

DOUBLE = [copy.copy, copy.deepcopy, pickle.dumps]


@pytest.mark.parametrize("double", DOUBLE)
def test_devices_and_their_memory(double: Callable[[object], object]) -> None:
    with npu.Device("sim:rk3588") as device:
        x, w = np.ones((1, 64), np.float16), np.ones((64, 64), np.float16)
        packed = npu.pack(w, device=device)
        buffer = device.buffer(64)
        for each in (device, device.session, buffer):
            with pytest.raises(TypeError, match=f"{type(each).__name__} cannot be copied or pickled"):
                double(each)
        gc.collect()
        np.testing.assert_array_equal(npu.matmul(x, packed), x @ w)
        assert not buffer.closed


@pytest.mark.parametrize("double", DOUBLE)
def test_open_files(tmp_path: Path, double: Callable[[object], object]) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"abc")
    with RegularFile(path) as file:
        with pytest.raises(TypeError, match="RegularFile cannot be copied or pickled"):
            double(file)
        gc.collect()
        assert file.read(0, 3).tobytes() == b"abc"


@pytest.mark.parametrize("double", DOUBLE)
def test_tokenizers(tmp_path: Path, double: Callable[[object], object]) -> None:
    write_tokenizer(tmp_path)
    tokenizer = JSONTokenizer({"tokenizer.json": (tmp_path / "tokenizer.json").read_bytes()})
    with pytest.raises(TypeError, match="JSONTokenizer cannot be copied or pickled"):
        double(tokenizer)
    assert tokenizer.decode(tokenizer.encode("ab")) == "ab"
