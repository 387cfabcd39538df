"""The Hugging Face hub: whether it answers, and in one line why it does not give what was asked.

All goes through huggingface_hub, so its cache, HF_ENDPOINT, HF_TOKEN and HF_HUB_OFFLINE hold. It is
imported by name: a device that asks no hub does without it.
"""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any
from urllib.parse import urlsplit

from vit_edge.errors import MissingExtraError

_ADDRESS_TIMEOUT_S = 1.5  # for one address of the hub, of which there are several
_PROBE_TIMEOUT_S = 4.0  # for all of them and the name server
# They warn of every retry and report every request; our error says it once.
_CHATTY = {"huggingface_hub": logging.ERROR, "httpx": logging.WARNING, "httpx2": logging.WARNING}


def library(part: str = "") -> Any:
    """Import huggingface_hub, or a part of it.

    Raises:
        MissingExtraError: It is not installed.
    """
    try:
        return import_module(f"huggingface_hub{part}")
    except ModuleNotFoundError as error:
        if error.name != "huggingface_hub":
            raise
        raise MissingExtraError(
            "asking the hub needs huggingface_hub: pip install huggingface_hub"
        ) from None


@contextmanager
def hushed() -> Iterator[None]:
    """Keep the libraries' retries and requests off the log; progress bars stay."""
    loggers = {logging.getLogger(name): level for name, level in _CHATTY.items()}
    before = {logger: logger.level for logger in loggers}
    for logger, level in loggers.items():
        logger.setLevel(max(level, logger.level))
    try:
        yield
    finally:
        for logger, level in before.items():
            logger.setLevel(level)


def silence() -> str | None:
    """Say why the hub does not answer; None if it does, or if only a proxy could tell.

    huggingface_hub itself needs half a minute of retries to find out, which no setting of it
    shortens.
    """
    # Imported here: with ssl they are a third of what a predictor imports of its own.
    import queue
    import socket
    from urllib.request import getproxies

    constants = library(".constants")
    if constants.HF_HUB_OFFLINE or getproxies():
        return None
    answers: queue.SimpleQueue[str | None] = queue.SimpleQueue()

    def knock() -> None:
        try:
            hub = urlsplit(constants.ENDPOINT)
            address = hub.hostname or "", hub.port or (80 if hub.scheme == "http" else 443)
            socket.create_connection(address, _ADDRESS_TIMEOUT_S).close()
            answers.put(None)
        except (OSError, ValueError) as error:  # ValueError: HF_ENDPOINT is no address
            answers.put(_one_line(error))

    # In a thread: a name server that is not there has no timeout of its own.
    threading.Thread(target=knock, daemon=True).start()
    try:
        silence = answers.get(timeout=_PROBE_TIMEOUT_S)
    except queue.Empty:
        silence = f"nothing within {_PROBE_TIMEOUT_S:.0f} s"
    return None if silence is None else f"the hub does not answer ({silence})"


def reason(error: BaseException) -> str:
    """Say in one line what went wrong."""
    constants, errors = library(".constants"), library(".errors")
    response = getattr(error, "response", None)
    status = getattr(response, "status_code", None)
    if isinstance(error, errors.GatedRepoError):
        return (
            f"the model is gated ({status}); accept its terms on its page, then log in with "
            "`hf auth login` or set HF_TOKEN"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return f"there is no such revision ({status})"
    if isinstance(error, errors.RepositoryNotFoundError):
        return (
            f"there is no such model, or it is private and no token opens it ({status}); "
            "log in with `hf auth login` or set HF_TOKEN if it is yours"
        )
    if isinstance(error, errors.LocalEntryNotFoundError):
        if constants.HF_HUB_OFFLINE:
            return "HF_HUB_OFFLINE is set, and the file is not in the cache"
        cause = error.__cause__
        if getattr(cause, "response", None) is not None:
            return reason(cause or error)
        return f"the hub does not answer ({_one_line(cause or error)})"
    if isinstance(error, errors.EntryNotFoundError):
        return f"the model has no such file ({status})"
    if status == 429:
        return "too many requests (429); wait some minutes, or log in with `hf auth login`"
    if status in (401, 403):
        return f"access refused ({status}); log in with `hf auth login` or set HF_TOKEN"
    return f"{type(error).__name__}: {_one_line(error)}"


def _one_line(error: BaseException) -> str:
    text = re.sub(r"[\s\x00-\x1f\x7f-\x9f]+", " ", str(error)).strip()
    return text[:300] or type(error).__name__
