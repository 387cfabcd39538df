"""Fetch the files of a checkpoint from the Hugging Face hub, and only those.

All goes through huggingface_hub, so its cache, HF_ENDPOINT, HF_TOKEN and HF_HUB_OFFLINE hold.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import socket
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies

import huggingface_hub
from huggingface_hub import constants, errors

from vit_edge.checkpoints.adapter import ADAPTER_CONFIG, advice
from vit_edge.checkpoints.files import WEIGHT_FILES, Place, shards_of_index
from vit_edge.checkpoints.text import reason
from vit_edge.errors import CheckpointError, HubError

log = logging.getLogger(__name__)

_ADDRESS_TIMEOUT_S = 1.5  # for one address of the hub, of which there are several
_PROBE_TIMEOUT_S = 4.0  # for all of them and the name server
# They warn of every retry and report every request; our error says it once.
_CHATTY = {"huggingface_hub": logging.ERROR, "httpx": logging.WARNING, "httpx2": logging.WARNING}


def fetch(
    source: str,
    repository: str,
    revision: str | None,
    required: Iterable[str],
    optional: Iterable[str] = (),
    weight_files: Iterable[str] = WEIGHT_FILES,
) -> Place:
    """Bring the named files and the weights, the first that is there, into the cache.

    Args:
        source: What asks, for the advice in errors: hf, timm, open_clip.
        repository: ORG/NAME.
        revision: A branch, tag or commit; None is the default branch.
        required: Files without which there is no checkpoint.
        optional: Files of which the first that is there is brought; all may be absent.
        weight_files: What weights are called, the best first.

    Returns:
        The folder of one commit in the cache of huggingface_hub: after the first file all others
        are asked for at that commit.

    Raises:
        CheckpointError: It is an adapter alone, which changes another model.
        HubError: A file cannot be had; the message says where it was looked for and what to do.
    """
    download = _Download(source, repository, _silence_of_the_hub())
    if download.unreachable:
        log.info("%s; looking in the cache", download.unreachable)
    with _hush():
        first, *others = required
        try:
            folder = download.require(first, revision).parent
        except HubError as error:
            adapter = download.adapter_config(error, revision)
            if adapter is not None:
                raise CheckpointError(f"{repository}: {advice(adapter)}") from error
            raise
        commit = folder.name
        for name in others:
            download.require(name, commit)
        for name in optional:
            if download.optional(name, commit) is not None:
                break
        weight_files = tuple(weight_files)
        for name in weight_files:
            weights = download.optional(name, commit)
            if weights is not None:
                for shard in shards_of_index(weights) if weights.suffix == ".json" else ():
                    download.require(shard, commit)
                return Place(folder, repository.rpartition("/")[2], commit)
    raise download.error(commit, f"no weights: none of {', '.join(weight_files)} is there")


@dataclass(frozen=True)
class _Download:
    """Fetches files of one repository; only from the cache if the hub is known not to answer."""

    source: str
    repository: str
    unreachable: str | None  # why the hub does not answer

    def require(self, name: str, revision: str | None) -> Path:
        """A file that must be there."""
        try:
            return self._file(name, revision)
        except Exception as error:  # whatever the HTTP library of the day raises
            raise self._cannot_get(name, revision, error) from error

    def optional(self, name: str, revision: str | None) -> Path | None:
        """A file, or None if the model has none such.

        Where offline was asked for nobody can know: then what is not in the cache is none.
        """
        try:
            return self._file(name, revision)
        except errors.LocalEntryNotFoundError as error:
            if constants.HF_HUB_OFFLINE:
                log.info(
                    "%s: offline, and %s is not in the cache: taken as absent",
                    self.repository,
                    name,
                )
                return None
            if self._known_absent(name, revision):
                return None
            raise self._cannot_get(name, revision, error) from error
        except errors.EntryNotFoundError:
            return None
        except Exception as error:  # as above
            raise self._cannot_get(name, revision, error) from error

    def adapter_config(self, error: HubError, revision: str | None) -> Path | None:
        """An adapter's configuration, where the hub said that the model has no other."""
        absent = isinstance(error.__cause__, errors.EntryNotFoundError)
        if not absent or isinstance(error.__cause__, errors.LocalEntryNotFoundError):
            return None
        with contextlib.suppress(HubError):
            return self.optional(ADAPTER_CONFIG, revision)
        return None

    def error(self, revision: str | None, what: str) -> HubError:
        """An error with where was looked, and the ways on."""
        return HubError(
            f"{self.repository} at revision {revision or 'main'}: {what}.\n"
            f"Looked at {constants.ENDPOINT} and in the cache {constants.HF_HUB_CACHE}.\n"
            "Three ways on:\n"
            "  1. copy the model's files here and name their directory: "
            f"--checkpoint {self.source}:DIR\n"
            f"  2. set HF_ENDPOINT to a mirror; or run `hf download {self.repository}` where there "
            "is a network and copy its cache here\n"
            "  3. for a trial without these weights: --checkpoint seeded:0 --variant NAME, or "
            "--checkpoint embedded"
        )

    def _file(self, name: str, revision: str | None) -> Path:
        local = self.unreachable is not None
        return Path(
            huggingface_hub.hf_hub_download(
                self.repository, name, revision=revision, local_files_only=local
            )
        )

    def _known_absent(self, name: str, revision: str | None) -> bool:
        """True if the hub, when it was last asked, said that this commit has no such file."""
        cached = huggingface_hub.try_to_load_from_cache(self.repository, name, revision=revision)
        return cached is huggingface_hub._CACHED_NO_EXIST

    def _cannot_get(self, name: str, revision: str | None, error: Exception) -> HubError:
        missing = isinstance(error, errors.LocalEntryNotFoundError)
        why = self.unreachable if self.unreachable and missing else _reason(error)
        return self.error(revision, f"cannot get {name}: {why}")


@contextmanager
def _hush() -> Iterator[None]:
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


def _silence_of_the_hub() -> str | None:
    """Say why the hub does not answer; None if it does, or if only a proxy could tell.

    huggingface_hub itself needs half a minute of retries to find out, which no setting of it
    shortens.
    """
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
            answers.put(reason(error))

    # In a thread: a name server that is not there has no timeout of its own.
    threading.Thread(target=knock, daemon=True).start()
    try:
        silence = answers.get(timeout=_PROBE_TIMEOUT_S)
    except queue.Empty:
        silence = f"nothing within {_PROBE_TIMEOUT_S:.0f} s"
    return None if silence is None else f"the hub does not answer ({silence})"


def _reason(error: BaseException) -> str:
    """Say in one line what went wrong."""
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
            return _reason(cause or error)
        return f"the hub does not answer ({reason(cause or error)})"
    if isinstance(error, errors.EntryNotFoundError):
        return f"the model has no such file ({status})"
    if status == 429:
        return "too many requests (429); wait some minutes, or log in with `hf auth login`"
    if status in (401, 403):
        return f"access refused ({status}); log in with `hf auth login` or set HF_TOKEN"
    return f"{type(error).__name__}: {reason(error)}"
