"""Reading models, and sessions of ONNX Runtime for them; weights in files of their own stay there until needed."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import onnx
import onnx.external_data_helper
import onnx.inliner
import onnxruntime

from npumatmul.errors import ModelError
from npumatmul.files.reading import shown
from npumatmul.onnx.candidates import graphs

__all__ = ["Loaded", "load_model", "reading_names", "session_of"]

_NO_TEXT = "this is no ONNX model: a name in it is no text"
#: Where ONNX Runtime is told of the folder of a model's other files, and since when.
_FOLDER, _FOLDER_SINCE = "session.model_external_initializers_file_folder_path", (1, 21)
_telling = threading.Lock()

#: What files of others begin with, after so many bytes.
_OTHERS = (
    (0, b"PK\x03\x04", "a zip archive, as torch.save writes; torch.onnx.export makes an ONNX model"),
    (0, b"\x80\x02", "a pickle, as torch.save wrote once; torch.onnx.export makes an ONNX model"),
    (0, b"GGUF", "a GGUF file, which npumatmul.llm.load reads"),
    (8, b'{"', "a safetensors file, which holds weights and no model"),
    (4, b"ORTM", "a model in ONNX Runtime's own format; the ONNX file that it was made of is needed"),
    (4, b"TFL3", "a TensorFlow Lite model"),
    (0, b"\x89HDF", "an HDF5 file, as Keras writes"),
    (0, b"RKNN", "a model that the vendor's toolkit has converted; the ONNX file that it was made of is needed"),
)


@dataclass(frozen=True)
class Loaded:
    """A model.

    Attributes
    ----------
    model : onnx.ModelProto
    folder : str
        Where files of weights are that the model names.
    """

    model: Any
    folder: str = ""


@contextmanager
def reading_names() -> Iterator[None]:
    """A model whose names are no text is none."""
    try:
        yield
    except UnicodeDecodeError as error:
        raise ModelError(f"{_NO_TEXT} ({error})") from error


def load_model(given: Any, options: Any = None) -> Loaded:
    """A model of a file, of bytes, or a copy of one that is loaded.

    Parameters
    ----------
    given : str, os.PathLike, bytes, onnx.ModelProto or Loaded
    options : onnxruntime.SessionOptions, optional
        They may say where the files of weights are that bytes name; else those are in the working directory, as for
        ONNX Runtime.

    Raises
    ------
    OSError
        If a file cannot be read; one that is missing is named.
    npumatmul.errors.ModelError
        If it is no model.
    """
    folder = _told_folder(options)
    if isinstance(given, onnx.ModelProto | Loaded):
        model = onnx.ModelProto()
        model.CopyFrom(given.model if isinstance(given, Loaded) else given)
        folder = given.folder if isinstance(given, Loaded) else folder
        called = "the model"
    elif isinstance(given, bytes | str | os.PathLike):
        called = "the bytes" if isinstance(given, bytes) else os.fsdecode(given)
        model = _parsed(given, called)
        if not isinstance(given, bytes) and not folder:
            folder = os.path.dirname(called) or "."
    else:
        raise TypeError(f"InferenceSession: a model is a path, bytes or an onnx.ModelProto, not {type(given).__name__}")
    if not model.graph.node and not model.graph.output:
        raise ModelError(f"{called}: this is no ONNX model: it has no graph")
    for graph, *_ in graphs(model.graph):
        _check_names(graph, called)
    _check_files(model, folder, called)
    return Loaded(_as_later(model), folder)


def _parsed(given: Any, called: str) -> Any:
    if not isinstance(given, bytes):
        if os.path.isdir(given):
            inside = sorted(name for name in os.listdir(given) if name.endswith(".onnx"))
            what = f"; in it is {', '.join(inside[:3])}" if inside else ""
            raise IsADirectoryError(errno.EISDIR, f"this is a folder, and a model is a file{what}", called)
        with open(given, "rb") as file:
            given = file.read()
    if not given:
        raise ModelError(f"{called}: this is no ONNX model: it is empty")
    try:
        return onnx.load_from_string(given)
    except Exception as error:
        other = next((what for at, start, what in _OTHERS if given[at:].startswith(start)), None)
        why = f"it is {other}" if other else shown(str(error))
        raise ModelError(f"{called}: this is no ONNX model: {why}") from error


def _check_names(graph: Any, called: str) -> None:
    """Protocol buffers give bytes where a text is none."""
    names = [each.name for part in (graph.input, graph.output, graph.initializer, graph.value_info) for each in part]
    for node in graph.node:
        names += [node.name, node.op_type, node.domain, *node.input, *node.output]
        names += [each.name for each in node.attribute]
    for name in names:
        if not isinstance(name, str):
            raise ModelError(f"{called}: {_NO_TEXT} ({name!r})")


def _outside(model: Any) -> Iterator[Any]:
    """Tensors whose values are in other files."""
    for graph, *_ in graphs(model.graph):
        tensors = [
            *graph.initializer,
            *(each.t for node in graph.node for each in node.attribute if each.HasField("t")),
        ]
        for each in tensors:
            if each.data_location == onnx.TensorProto.EXTERNAL:
                yield each


def _check_files(model: Any, folder: str, called: str) -> None:
    """All files that a model names are there, and hold as much as it says."""
    sizes: dict[str, int] = {}
    for each in _outside(model):
        said = {entry.key: entry.value for entry in each.external_data}
        location = said.get("location", "")
        whole = os.path.join(folder, location)
        if location not in sizes:
            try:
                sizes[location] = os.stat(whole).st_size
            except OSError as error:
                why = f"{called} keeps the values of {each.name!r} there: {os.strerror(error.errno or 0)}"
                raise type(error)(error.errno, why, whole) from error
        start, length = (int(said[key]) if said.get(key, "").isdecimal() else 0 for key in ("offset", "length"))
        if start + length > sizes[location]:
            raise ModelError(
                f"{whole}: {called} keeps the values of {each.name!r} there, up to byte {start + length}, and the file "
                f"has {sizes[location]}; it was cut short or belongs to another model"
            )


def _as_later(model: Any) -> Any:
    """The same without functions of its own, and without inputs that are constants, as models had before version 4."""
    if model.functions:
        try:
            model = onnx.inliner.inline_local_functions(model)
        except Exception:  # ONNX Runtime says what is wrong with it; what is in functions stays
            return model
    if 0 < model.ir_version < 4:  # no initializer can be given anew then, though all are inputs
        constants = {each.name for each in model.graph.initializer}
        inputs = [each for each in model.graph.input if each.name not in constants]
        del model.graph.input[:]
        model.graph.input.extend(inputs)
        model.ir_version = 4
    return model


def session_of(
    model: Loaded,
    options: Any = None,
    providers: Sequence[Any] | None = None,
    *more: Any,
    is_ours: bool = True,
    **how: Any,
) -> Any:
    """ONNX Runtime's session of a model; options that are not ours are left as they were.

    Raises
    ------
    npumatmul.errors.ModelError
        If what it holds itself is larger than a model can be.
    Exception
        As ONNX Runtime.
    """
    options = onnxruntime.SessionOptions() if options is None else options
    providers = providers or ["CPUExecutionProvider"]
    if not model.folder or next(_outside(model.model), None) is None:
        return onnxruntime.InferenceSession(_serialized(model.model), options, providers, *more, **how)
    if tuple(int(part) for part in onnxruntime.__version__.split(".")[:2]) < _FOLDER_SINCE:
        whole = onnx.ModelProto()
        whole.CopyFrom(model.model)
        onnx.external_data_helper.load_external_data_for_model(whole, model.folder)
        return onnxruntime.InferenceSession(_serialized(whole), options, providers, *more, **how)
    with _telling:
        before = _told_folder(options)
        options.add_session_config_entry(_FOLDER, os.path.abspath(model.folder))
        try:
            return onnxruntime.InferenceSession(_serialized(model.model), options, providers, *more, **how)
        finally:
            if not is_ours:
                options.add_session_config_entry(_FOLDER, before)


def _told_folder(options: Any) -> str:
    found = ""
    if options is not None:
        with suppress(RuntimeError):  # nothing was said
            found = str(options.get_session_config_entry(_FOLDER))
    return found


def _serialized(model: Any) -> bytes:
    try:
        made: bytes = model.SerializeToString()
    except ValueError as error:
        raise ModelError(
            f"what stays on the CPU is larger than the 2 GB that a model can have ({error}); save its weights as "
            "external data"
        ) from error
    return made
