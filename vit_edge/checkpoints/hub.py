"""Fetch the files of a checkpoint from the Hugging Face hub, and only those.

All goes through huggingface_hub, so its cache, HF_ENDPOINT, HF_TOKEN and HF_HUB_OFFLINE hold.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import huggingface_hub
from huggingface_hub import constants, errors

from vit_edge.checkpoints.adapter import ADAPTER_CONFIG, advice
from vit_edge.checkpoints.files import WEIGHT_FILES, Place, shards_of_index
from vit_edge.errors import CheckpointError, HubError
from vit_edge.hub import hushed, reason, silence

log = logging.getLogger(__name__)


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
    download = _Download(source, repository, silence())
    if download.unreachable:
        log.info("%s; looking in the cache", download.unreachable)
    with hushed():
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
        why = self.unreachable if self.unreachable and missing else reason(error)
        return self.error(revision, f"cannot get {name}: {why}")
