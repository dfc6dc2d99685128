"""ONNX models with their products on the NPU: a drop-in for ``onnxruntime.InferenceSession``; nothing is converted."""

from npumatmul.extras import explain_missing as _explain_missing

try:
    from npumatmul.onnx.comparing import NodeError, compare
    from npumatmul.onnx.inspecting import Inspected, inspect
    from npumatmul.onnx.report import NodeRow, Report
    from npumatmul.onnx.session import InferenceSession
except ImportError as error:
    _explain_missing(error, "npumatmul.onnx")
    raise

__all__ = ["InferenceSession", "Inspected", "NodeError", "NodeRow", "Report", "compare", "inspect"]
