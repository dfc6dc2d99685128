"""Packed weights in files.

A file is in the safetensors format. Its metadata says ``format``, ``version``, ``description`` and ``checksum`` of the
latter. The description is JSON and has for each weight its shape and scheme, the chip, matmul type and layout of its
tiles, how K and N are cut, and checksums. Tensors are ``<name>/tile.<i>`` (uint8: the bytes of one tile as the NPU
reads it) and ``<name>/<array>`` (scales, zero points, sums of columns).
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from npumatmul.device.current import current_device
from npumatmul.device.device import Device
from npumatmul.errors import ClosedError, PackedFileError, UnusableFileError
from npumatmul.files.reading import shown
from npumatmul.host.checksums import text_checksum
from npumatmul.ops.packed.files.description import read_description
from npumatmul.ops.packed.files.parts import FORMAT, VERSION
from npumatmul.ops.packed.files.reader import TensorFile, TensorWriter, WrongTensorFile
from npumatmul.ops.packed.files.tensors import described, restored
from npumatmul.ops.packed.weight import PackedWeight

__all__ = [
    "PackedFile",
    "StoredParts",
    "add_packed",
    "descriptions_of",
    "load_packed",
    "open_packed",
    "packed_metadata",
    "save_packed",
]

#: What a weight is called in a file that it has for itself.
ALONE = "weight"


def save_packed(weights: PackedWeight | Mapping[str, PackedWeight], path: str | os.PathLike[str]) -> None:
    """Write packed weights into one file, from which they are loaded without being packed again.

    The file is for chips with the layout that the weights have here; others refuse it.

    Parameters
    ----------
    weights : PackedWeight, or mapping of str to PackedWeight
        One weight, or several by name. They stay usable; their devices wait while they are written.
    path : str or os.PathLike
        A file that exists is replaced once all is written.

    Raises
    ------
    TypeError, ValueError
        If there is no weight, or a name is not a text or has a ``"/"``.
    ClosedError
        If a weight is closed.
    OSError
        If the file cannot be written.

    Examples
    --------
    >>> import tempfile, pathlib
    >>> import numpy as np
    >>> import npumatmul as npu
    >>> folder = tempfile.TemporaryDirectory()
    >>> path = pathlib.Path(folder.name) / "weights.safetensors"
    >>> npu.save_packed({"up": npu.pack(np.eye(32, dtype=np.float16), "w8a8")}, path)
    >>> npu.load_packed(path)
    PackedWeight(shape=(32, 32), scheme='w8a8', device='sim:rk3588')
    >>> folder.cleanup()
    """
    named = {ALONE: weights} if isinstance(weights, PackedWeight) else dict(weights)
    if not named:
        raise ValueError("save_packed: there is no weight to write")
    for name, weight in named.items():
        if not isinstance(name, str) or "/" in name or not name:
            raise ValueError(f"save_packed: a weight is called {name!r}; names are texts without '/'")
        if not isinstance(weight, PackedWeight):
            raise TypeError(f"save_packed: {name!r} is {type(weight).__name__}, not a PackedWeight; pack it first")
    devices = {id(weight.device): weight.device for weight in named.values()}
    with contextlib.ExitStack() as locks:
        for key in sorted(devices):  # always in this order, so that two writers cannot wait for each other
            locks.enter_context(devices[key].lock)
        for name, weight in named.items():
            if weight.closed:
                raise ClosedError(f"save_packed: {name!r} is closed")
        with TensorWriter(path) as writer:
            writer.finish(packed_metadata({name: add_packed(writer, name, each) for name, each in named.items()}))


def add_packed(writer: TensorWriter, name: str, weight: PackedWeight) -> dict[str, Any]:
    """Write the tiles and arrays of one weight; hold its device's lock.

    Parameters
    ----------
    writer : TensorWriter
    name : str
        Tensors are called ``<name>/...``.
    weight : PackedWeight

    Returns
    -------
    dict
        The description, for `packed_metadata`.
    """
    content, arrays = described(weight)
    for part, array in arrays.items():
        writer.add(f"{name}/{part}", array)
    return content


def packed_metadata(descriptions: Mapping[str, Any]) -> dict[str, str]:
    """What the metadata of a file of packed weights says.

    Parameters
    ----------
    descriptions : mapping of str to dict
        By name of the weight, as `add_packed` returned them.
    """
    text = json.dumps(descriptions, separators=(",", ":"), allow_nan=False)
    return {
        "format": FORMAT,
        "version": str(VERSION),
        "description": text,
        "checksum": text_checksum(text),
    }


def load_packed(
    path: str | os.PathLike[str], name: str | None = None, *, device: Device | str | None = None
) -> PackedWeight:
    """Load a packed weight from a file of `save_packed`: its tiles go into NPU memory byte for byte.

    Parameters
    ----------
    path : str or os.PathLike
    name : str, optional
        Which weight, where the file has several; `open_packed` lists them.
    device : Device or str, optional
        The current device by default.

    Returns
    -------
    PackedWeight

    Raises
    ------
    PackedFileError
        If the file is damaged, none of packed weights, by a newer version, or for another layout than the device's.
    KeyError
        If the file has no such weight, or several and none is named.
    NpuMemoryError
        If it does not fit.
    OSError
        If the file cannot be read.
    """
    with open_packed(path, device=device) as file:
        if name is None:
            if len(file) != 1:
                raise KeyError(f"{os.fspath(path)} holds {len(file)} weights ({', '.join(file)[:200]}): say which")
            (name,) = file
        return file[name]


def open_packed(path: str | os.PathLike[str], *, device: Device | str | None = None) -> PackedFile:
    """Open a file of `save_packed` as a mapping from which weights are loaded one by one.

    Parameters
    ----------
    path : str or os.PathLike
    device : Device or str, optional
        Where weights are loaded to: the current device by default.

    Returns
    -------
    PackedFile

    Raises
    ------
    PackedFileError, OSError
        As `load_packed`.
    """
    return PackedFile(path, current_device(device))


class PackedFile(Mapping[str, PackedWeight]):
    """Packed weights in a file, by name; `open_packed` opens one.

    A weight is read when it is asked for, each time anew. Close the file, or use it in a ``with`` block.

    Attributes
    ----------
    path : str
    device : Device
        Where weights are loaded to.
    """

    def __init__(self, path: str | os.PathLike[str], device: Device) -> None:
        self.path, self.device = os.fspath(path), device
        try:
            file = TensorFile(self.path)
        except WrongTensorFile as error:
            raise PackedFileError(f"{self.path} is damaged, or no safetensors file ({error})") from error
        self._file: TensorFile | None = file
        self._descriptions = descriptions_of(file)

    def __enter__(self) -> PackedFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the file up; weights that were loaded stay. Closing twice is allowed."""
        if self._file is not None:
            self._file.close()
        self._file = None

    def __repr__(self) -> str:
        return f"PackedFile({self.path!r}, {len(self)} weights{', closed' if self._file is None else ''})"

    def __len__(self) -> int:
        return len(self._descriptions)

    def __iter__(self) -> Iterator[str]:
        return iter(self._descriptions)

    def __contains__(self, name: object) -> bool:
        return name in self._descriptions

    def __getitem__(self, name: str) -> PackedWeight:
        """Load a weight; each time into memory of its own."""
        if self._file is None:
            raise ClosedError(f"{self.path} is closed; open it again")
        if name not in self._descriptions:
            raise KeyError(f"{self.path} holds no weight {name!r}; it holds {', '.join(self)[:200]}")
        parts = StoredParts(self._file, name)
        return restored(self._descriptions[name], parts, self.device, parts.where, read_into=parts.read_into)


class StoredParts:
    """Gives arrays and tiles of one weight in a file by name.

    Each is read when it is asked for; tiles are, one by one, as they go to the device.

    Parameters
    ----------
    file : TensorFile
    weight : str
        Its name.

    Attributes
    ----------
    path : str
        The file.
    where : str
        File and weight, for messages.
    """

    def __init__(self, file: TensorFile, weight: str) -> None:
        self._file, self._weight = file, weight
        self.path = file.path
        self.where = f"{file.path}, weight {weight!r},"

    def __call__(self, part: str) -> NDArray[Any]:
        """An array, or a tile.

        Raises
        ------
        PackedFileError
            If it is missing, of a type that is not used, or not in the file any more.
        """
        name = self._name(part)
        try:
            return self._file[name]
        except (WrongTensorFile, UnusableFileError) as error:
            raise PackedFileError(f"{self.where} is damaged: {error}") from error

    def read_into(self, part: str, memory: NDArray[np.uint8]) -> int | None:
        """Read a tile to where it is to be, and tell its checksum; None if it is not of so many bytes.

        Raises
        ------
        PackedFileError
            As for reading an array.
        """
        name = self._name(part)
        try:
            return self._file.read_into(name, memory)
        except (WrongTensorFile, UnusableFileError) as error:
            raise PackedFileError(f"{self.where} is damaged: {error}") from error

    def _name(self, part: str) -> str:
        name = f"{self._weight}/{part}"
        if name not in self._file.names:
            raise PackedFileError(f"{self.where} is damaged: tensor {name!r} is missing")
        return name

    @property
    def nbytes(self) -> int:
        return self._file.nbytes(self._file.under(self._weight))


def descriptions_of(file: TensorFile) -> dict[str, Any]:
    """The descriptions of packed weights in a file, by name.

    Raises
    ------
    PackedFileError
        If it holds none, is of another version, or damaged.
    """
    path, metadata = file.path, file.metadata
    if metadata.get("format") != FORMAT:
        raise PackedFileError(f"{path} holds no packed weights (format {shown(metadata.get('format', 'not named'))})")
    version = metadata.get("version", "")
    if version != str(VERSION):
        raise PackedFileError(
            f"{path} has version {version[:20]!r} of the format, this npumatmul reads {VERSION}; update npumatmul, or "
            "pack the weights again"
        )
    text = metadata.get("description", "")
    if metadata.get("checksum") != text_checksum(text):
        raise PackedFileError(f"{path} is damaged: the checksum of its description differs")
    return read_description(text, path)
