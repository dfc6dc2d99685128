"""Every exception of the package.

All derive from `NpuError`; those that a caller may reasonably expect as a built-in type derive from that too, so
``except ValueError`` and ``except MemoryError`` work as they would with numpy.

The tree, with the built-in type beside each::

    NpuError
    ├── LibraryNotFoundError (OSError)
    ├── DeviceError (ValueError)
    ├── ClosedError (RuntimeError)
    ├── DeviceLostError (RuntimeError)
    ├── BusyError (RuntimeError)
    ├── BoardInUseError (RuntimeError)
    ├── CalibrationError (RuntimeError)
    ├── UnsupportedByRuntime (NotImplementedError)
    ├── LayoutMismatchError (RuntimeError)
    ├── NpuMemoryError (MemoryError)
    ├── NotFiniteError (ValueError)
    ├── ModelError (ValueError)
    ├── PackedFileError (ValueError)
    ├── UnusableFileError (OSError)
    ├── MissingPackageError (ModuleNotFoundError)
    └── RknnError (RuntimeError)
        ├── RknnFail
        ├── RknnTimeout
        ├── RknnDeviceUnavailable
        ├── RknnMallocFail (MemoryError)
        ├── RknnParamInvalid (ValueError)
        ├── RknnModelInvalid
        ├── RknnContextInvalid
        ├── RknnInputInvalid
        ├── RknnOutputInvalid
        ├── RknnDeviceUnmatch
        ├── RknnIncompatiblePreCompileModel
        ├── RknnIncompatibleOptimizationLevel
        └── RknnTargetPlatformUnmatch
"""

from __future__ import annotations

from typing import Any, ClassVar

__all__ = [
    "RKNN_ERRORS",
    "BoardInUseError",
    "BusyError",
    "CalibrationError",
    "ClosedError",
    "DeviceError",
    "DeviceLostError",
    "LayoutMismatchError",
    "LibraryNotFoundError",
    "MissingPackageError",
    "ModelError",
    "NotFiniteError",
    "NpuError",
    "NpuMemoryError",
    "PackedFileError",
    "RknnContextInvalid",
    "RknnDeviceUnavailable",
    "RknnDeviceUnmatch",
    "RknnError",
    "RknnFail",
    "RknnIncompatibleOptimizationLevel",
    "RknnIncompatiblePreCompileModel",
    "RknnInputInvalid",
    "RknnMallocFail",
    "RknnModelInvalid",
    "RknnOutputInvalid",
    "RknnParamInvalid",
    "RknnTargetPlatformUnmatch",
    "RknnTimeout",
    "UnsupportedByRuntime",
    "UnusableFileError",
    "rknn_error",
]


class NpuError(Exception):
    """Base of every exception that npumatmul raises on purpose."""


class LibraryNotFoundError(NpuError, OSError):
    """No usable runtime library: the message lists what was looked for, where, and what was wrong with it."""


class DeviceError(NpuError, ValueError):
    """A device string, or the environment's choice of a device, cannot be used."""


class ClosedError(NpuError, RuntimeError):
    """An object was used after it, or the device that it belongs to, was closed (or inherited through a fork)."""


class DeviceLostError(NpuError, RuntimeError):
    """The NPU is gone: its driver does nothing any more. The message names the call that failed first."""


class BusyError(NpuError, RuntimeError):
    """A context or buffer is in use by another thread; nothing was called."""


class BoardInUseError(NpuError, RuntimeError):
    """Another process uses the NPU of this board; the message names it and says how to go on all the same."""


class CalibrationError(NpuError, RuntimeError):
    """What was measured gives no constants that could be relied on; nothing was stored."""


class UnsupportedByRuntime(NpuError, NotImplementedError):
    """The loaded runtime library is too old for this; the message names the version that has it."""


class LayoutMismatchError(NpuError, RuntimeError):
    """The runtime reports tensor sizes or shapes that differ from the capability table; nothing was written."""


class NpuMemoryError(NpuError, MemoryError):
    """The NPU's memory, its address space or the process's file descriptors are used up."""


class NotFiniteError(NpuError, ValueError):
    """An inf or nan stands where values have to be quantized."""


class ModelError(NpuError, ValueError):
    """A model file is damaged, incomplete or of a kind that is not supported."""


class PackedFileError(NpuError, ValueError):
    """A file or pickle of packed weights is damaged, or made for another layout or by a newer version."""


class UnusableFileError(NpuError, OSError):
    """A file cannot be used: no regular one, too long, sparse, changed meanwhile, its own source, locked too long."""


class MissingPackageError(NpuError, ModuleNotFoundError):
    """A package is not installed that an optional part of npumatmul needs; the message says how to get it."""


class RknnError(NpuError, RuntimeError):
    """A function of the RKNN runtime returned an error code.

    Attributes
    ----------
    function : str
        Name of the C function.
    code : int
        What it returned.
    arguments : dict[str, object]
        The arguments that matter, as passed.
    """

    name: ClassVar[str] = "unknown code"
    meaning: ClassVar[str] = "a code that no published header lists"
    hint: ClassVar[str] = ""

    def __init__(self, function: str, code: int, arguments: dict[str, Any] | None = None, hint: str = "") -> None:
        self.function = function
        self.code = code
        self.arguments = dict(arguments or {})
        advice = hint or self.hint
        super().__init__(f"{self.what}. {advice}" if advice else f"{self.what}.")

    @property
    def what(self) -> str:
        """What happened, without advice: the call, the code, and what it means."""
        shown = ", ".join(f"{key}={value}" for key, value in self.arguments.items())
        return f"{self.function}({shown}) returned {self.code} ({self.name}): {self.meaning}"


class RknnFail(RknnError):
    """RKNN_ERR_FAIL, -1."""

    name = "RKNN_ERR_FAIL"
    meaning = "execution failed"
    hint = "The runtime prints the reason on standard error (RKNN_LOG_LEVEL=2 makes it say more)."


class RknnTimeout(RknnError):
    """RKNN_ERR_TIMEOUT, -2."""

    name = "RKNN_ERR_TIMEOUT"
    meaning = "timed out"
    hint = "The NPU may hang: try a smaller shape, raise RKNN_MIN_TIMEOUT_MS, or restart the board."


class RknnDeviceUnavailable(RknnError):
    """RKNN_ERR_DEVICE_UNAVAILABLE, -3."""

    name = "RKNN_ERR_DEVICE_UNAVAILABLE"
    meaning = "the NPU device is not available"
    hint = "Check that the rknpu kernel driver is loaded and that /dev/dri is readable by this user."


class RknnMallocFail(RknnError, MemoryError):
    """RKNN_ERR_MALLOC_FAIL, -4."""

    name = "RKNN_ERR_MALLOC_FAIL"
    meaning = "memory allocation failed"
    hint = "Release packed weights that are no longer needed, or raise the descriptor limit (ulimit -n)."


class RknnParamInvalid(RknnError, ValueError):
    """RKNN_ERR_PARAM_INVALID, -5."""

    name = "RKNN_ERR_PARAM_INVALID"
    meaning = "bad parameter"
    hint = "The runtime prints which one on standard error."


class RknnModelInvalid(RknnError):
    """RKNN_ERR_MODEL_INVALID, -6."""

    name = "RKNN_ERR_MODEL_INVALID"
    meaning = "bad model"


class RknnContextInvalid(RknnError):
    """RKNN_ERR_CTX_INVALID, -7."""

    name = "RKNN_ERR_CTX_INVALID"
    meaning = "bad context: destroyed already, or never created"


class RknnInputInvalid(RknnError):
    """RKNN_ERR_INPUT_INVALID, -8."""

    name = "RKNN_ERR_INPUT_INVALID"
    meaning = "bad input object"


class RknnOutputInvalid(RknnError):
    """RKNN_ERR_OUTPUT_INVALID, -9."""

    name = "RKNN_ERR_OUTPUT_INVALID"
    meaning = "bad output object"


class RknnDeviceUnmatch(RknnError):
    """RKNN_ERR_DEVICE_UNMATCH, -10."""

    name = "RKNN_ERR_DEVICE_UNMATCH"
    meaning = "runtime and driver versions do not match"
    hint = "Update the NPU driver and librknnrt.so together."


class RknnIncompatiblePreCompileModel(RknnError):
    """RKNN_ERR_INCOMPATILE_PRE_COMPILE_MODEL (the header's spelling), -11."""

    name = "RKNN_ERR_INCOMPATILE_PRE_COMPILE_MODEL"
    meaning = "the pre-compiled model cannot be used with this driver"


class RknnIncompatibleOptimizationLevel(RknnError):
    """RKNN_ERR_INCOMPATILE_OPTIMIZATION_LEVEL_VERSION (the header's spelling), -12."""

    name = "RKNN_ERR_INCOMPATILE_OPTIMIZATION_LEVEL_VERSION"
    meaning = "the model's optimization level cannot be used with this driver"


class RknnTargetPlatformUnmatch(RknnError):
    """RKNN_ERR_TARGET_PLATFORM_UNMATCH, -13."""

    name = "RKNN_ERR_TARGET_PLATFORM_UNMATCH"
    meaning = "the model is for another platform"


#: Exception class of each code (facts 2).
RKNN_ERRORS: dict[int, type[RknnError]] = {
    -1: RknnFail,
    -2: RknnTimeout,
    -3: RknnDeviceUnavailable,
    -4: RknnMallocFail,
    -5: RknnParamInvalid,
    -6: RknnModelInvalid,
    -7: RknnContextInvalid,
    -8: RknnInputInvalid,
    -9: RknnOutputInvalid,
    -10: RknnDeviceUnmatch,
    -11: RknnIncompatiblePreCompileModel,
    -12: RknnIncompatibleOptimizationLevel,
    -13: RknnTargetPlatformUnmatch,
}


def rknn_error(function: str, code: int, arguments: dict[str, Any] | None = None, hint: str = "") -> RknnError:
    """Make the exception that belongs to a return code.

    Examples
    --------
    >>> print(rknn_error("rknn_matmul_run", -7, {"ctx": "0x10"}))
    rknn_matmul_run(ctx=0x10) returned -7 (RKNN_ERR_CTX_INVALID): bad context: destroyed already, or never created.
    """
    return RKNN_ERRORS.get(code, RknnError)(function, code, arguments, hint)
