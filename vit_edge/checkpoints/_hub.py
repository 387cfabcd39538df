"""Fetch the files of a checkpoint from the Hugging Face hub, and only those.

All goes through huggingface_hub, so its cache, HF_ENDPOINT, HF_TOKEN and HF_HUB_OFFLINE hold.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import huggingface_hub
from huggingface_hub import constants, errors

from vit_edge.checkpoints._files import WEIGHT_FILES, shards_of_index
from vit_edge.errors import CheckpointError, HubError

log = logging.getLogger(__name__)

_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")


@dataclass(frozen=True)
class Snapshot:
    """The files of one commit, in the cache of huggingface_hub."""

    path: Path
    revision: str  # the commit


def fetch(
    repository: str, revision: str | None, required: Iterable[str], optional: Iterable[str]
) -> Snapshot:
    """Bring the named files and the weights (safetensors first) into the cache.

    Args:
        repository: ORG/NAME.
        revision: A branch, tag or commit; None is the default branch.
        required: Files without which there is no checkpoint.
        optional: Files that may be absent.

    Returns:
        The folder of one commit: after the first file all others are asked for at that commit.

    Raises:
        CheckpointError: `repository` is neither a path nor an id.
        HubError: A file cannot be had; the message says where it was looked for and what to do.
    """
    if not _REPOSITORY.fullmatch(repository):
        raise CheckpointError(
            f"{repository}: no such file or directory, and no model id of the hub (ORG/NAME)"
        )
    first, *others = required
    folder = _required(repository, first, revision).parent
    commit = folder.name
    for name in others:
        _required(repository, name, commit)
    for name in optional:
        _optional(repository, name, commit)
    for name in WEIGHT_FILES:
        found = _optional(repository, name, commit)
        if found is not None:
            shards = shards_of_index(found) if found.suffix == ".json" else ()
            for shard in shards:
                _required(repository, shard, commit)
            return Snapshot(folder, commit)
    what = f"no weights: none of {', '.join(WEIGHT_FILES)} is there"
    raise HubError(_message(repository, commit, what))


def _required(repository: str, name: str, revision: str | None) -> Path:
    try:
        return _download(repository, name, revision)
    except Exception as error:  # whatever the HTTP library of the day raises
        what = f"cannot get {name}: {_reason(error)}"
        raise HubError(_message(repository, revision, what)) from error


def _optional(repository: str, name: str, revision: str) -> Path | None:
    """None if the model has no such file. Offline nobody knows; then what is not cached is none."""
    try:
        return _download(repository, name, revision)
    except errors.EntryNotFoundError as error:
        unknown = isinstance(error, errors.LocalEntryNotFoundError)
        if unknown and not constants.HF_HUB_OFFLINE:
            what = f"cannot get {name}: {_reason(error)}"
            raise HubError(_message(repository, revision, what)) from error
        if unknown:
            log.info("%s: offline, and %s is not in the cache: taken as absent", repository, name)
        return None
    except Exception as error:  # as above
        what = f"cannot get {name}: {_reason(error)}"
        raise HubError(_message(repository, revision, what)) from error


def _download(repository: str, name: str, revision: str | None) -> Path:
    return Path(huggingface_hub.hf_hub_download(repository, name, revision=revision))


def _message(repository: str, revision: str | None, what: str) -> str:
    return (
        f"{repository} at revision {revision or 'main'}: {what}.\n"
        f"Looked at {constants.ENDPOINT} and in the cache {constants.HF_HUB_CACHE}.\n"
        "Three ways on:\n"
        "  1. copy the model's files here and name their directory: --checkpoint hf:DIR\n"
        "  2. set HF_ENDPOINT to a mirror; or run `hf download "
        f"{repository}` where there is a network and copy its cache here\n"
        "  3. for a trial without these weights: --checkpoint seeded:0, or embedded"
    )


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
        return f"the hub does not answer ({cause or error}); HF_HUB_OFFLINE=1 uses the cache alone"
    if isinstance(error, errors.EntryNotFoundError):
        return f"the model has no such file ({status})"
    if status == 429:
        return "too many requests (429); wait some minutes, or log in with `hf auth login`"
    if status in (401, 403):
        return f"access refused ({status}); log in with `hf auth login` or set HF_TOKEN"
    first_line = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {first_line}"
