"""Errors as clients see them: a status and a sentence."""

from __future__ import annotations

import logging

from npumatmul.errors import ClosedError, DeviceLostError, ModelError, NpuError, NpuMemoryError
from npumatmul.llm import ContextFullError
from npumatmul.llm.constrain.automaton import AmbiguousError

__all__ = ["ApiError", "of_answer", "of_request"]

logger = logging.getLogger(__name__)

KINDS = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}


class ApiError(Exception):
    """What a client did wrong, or what it cannot have now.

    Attributes
    ----------
    status : int
        Of HTTP.
    message : str
        What is wrong and what to do.
    param, code : str or None
        Which part of the request is meant, and a word for programs, as in OpenAI's errors.
    retry_after : int or None
        Seconds after which it may be tried again.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code, self.retry_after = status, message, param, code, retry_after

    @property
    def kind(self) -> str:
        """OpenAI's word for it."""
        return KINDS.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")

    def headers(self) -> list[tuple[bytes, bytes]]:
        made = []
        if self.retry_after is not None:
            made.append((b"retry-after", str(self.retry_after).encode()))
        if self.status == 401:
            made.append((b"www-authenticate", b"Bearer"))
        return made


def of_request(error: Exception) -> ApiError:
    """What is said of an error that came before anything was computed: it is about what was asked for."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, ContextFullError):
        return ApiError(400, str(error), code="context_length_exceeded")
    if isinstance(error, ModelError) or (
        isinstance(error, (ValueError, TypeError)) and not isinstance(error, NpuError)
    ):
        return ApiError(400, str(error))
    return of_answer(error)


def of_answer(error: BaseException) -> ApiError:
    """What is said of an error that ended an answer."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, AmbiguousError):
        return ApiError(400, str(error))
    logger.error("a request failed: %s", error, exc_info=not isinstance(error, NpuError))
    if isinstance(error, (DeviceLostError, ClosedError, NpuMemoryError)):
        return ApiError(503, str(error), code="unavailable")
    if isinstance(error, (NpuError, ValueError)):
        return ApiError(500, str(error), code="failed")
    return ApiError(500, f"the server failed with {type(error).__name__}; its log has more", code="failed")
