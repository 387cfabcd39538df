"""TensorRT's messages, kept so that an answer of None or -1 is reported with its reason."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from vit_edge.errors import BackendError, ResourceError

_LOG = logging.getLogger(__name__)
_KEPT = 50  # the last ones; a build that fails says a few
# Of messages by which TensorRT says that memory ran out, in any of its versions.
_MEMORY = ("out of memory", "outofmemory", "insufficient memory", "mem_alloc_failed")


def message_logger(trt: Any) -> Any:
    """A TensorRT logger that keeps errors in `.errors`, and passes warnings on to `logging`.

    Args:
        trt: The module; its ILogger is what a logger has to be made of.
    """

    class Logger(trt.ILogger):  # type: ignore[misc]
        """Must live as long as anything that was made with it."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR):
                self.errors = [*self.errors[1 - _KEPT :], message]
            elif severity == trt.ILogger.WARNING:
                _LOG.debug("TensorRT: %s", message)

    return Logger()


def create(what: str, logger: Any, make: Callable[[], Any]) -> Any:
    """Something of TensorRT's, which answers None or raises where there is no such thing.

    Args:
        what: Its name, for the error.
        logger: That TensorRT has its reasons from.
        make: The call.

    Raises:
        BackendError: It gave none; the message has its words.
        ResourceError: Because memory ran out.
    """
    try:
        thing = make()
    except (TypeError, RuntimeError, ValueError) as error:  # of pybind11, when a factory gives None
        raise failure(f"TensorRT gives no {what}: {error}", logger) from error
    if thing is None:
        raise failure(f"TensorRT gives no {what}", logger)
    return thing


def failure(what: str, logger: Any) -> BackendError | ResourceError:
    """An error with TensorRT's words, for a call that answered None, -1 or False."""
    errors = logger.errors
    if ran_out_of_memory(errors):
        return ResourceError(
            f"{what}: memory ran out\nFree some, or build with a smaller workspace_mb, a smaller "
            f"largest batch (profiles) or optimization_level 0:{quote(errors)}"
        )
    return BackendError(f"{what}:{quote(errors)}")


def quote(errors: list[str]) -> str:
    """Errors as the end of a message."""
    lines = "".join(f"\n  | {line}" for line in dict.fromkeys(errors))
    return lines or "\n  | TensorRT gave no reason"


def ran_out_of_memory(errors: list[str]) -> bool:
    """True if it is memory that was missing."""
    return any(word in error.lower() for error in errors for word in _MEMORY)
