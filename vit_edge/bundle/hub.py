"""A bundle on the Hugging Face hub: `hf:ORG/NAME@REVISION` becomes a folder on this machine.

The hub's cache holds symbolic links, behind which runtimes refuse weights. So a bundle is copied
out of it, once a commit, and every byte is held against the manifest.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import re
from pathlib import Path

from vit_edge import hub
from vit_edge.bundle.manifest import MANIFEST_NAME, Manifest, manifest_from_json
from vit_edge.errors import BundleError, HubError, IntegrityError, UsageError
from vit_edge.machine import userdirs

_LOG = logging.getLogger(__name__)

_REFERENCE = re.compile(r"hf:([\w.-]+/[\w.-]+)(?:@([\w./-]+))?", re.ASCII)


class _FasterError(Exception):
    """Another process brought the bundle meanwhile: its folder may be open, and stays."""


def fetch_bundle(reference: str) -> Path:
    """Bring a bundle here, unless it is here already.

    Args:
        reference: `hf:ORG/NAME`, or `hf:ORG/NAME@REVISION` with a branch, tag or commit.

    Returns:
        Its folder in the user's cache.

    Raises:
        UsageError: The reference is none.
        HubError: The hub does not answer, or does not have it, and neither has its cache.
        BundleError: The repository holds no bundle, or a damaged one.
        MissingExtraError: huggingface_hub is not installed.
    """
    parts = _REFERENCE.fullmatch(reference)
    if parts is None:
        raise UsageError(f"{reference}: a bundle of the hub is written hf:ORG/NAME@REVISION")
    repository, revision = parts[1], parts[2]
    silent = hub.silence()
    if silent is not None:
        _LOG.info("%s; looking in the cache", silent)
    manifest_file = _file(repository, MANIFEST_NAME, revision, silent)
    commit = manifest_file.parent.name
    cache = userdirs.cache_dir()
    if cache is None:
        raise HubError(f"{reference}: no folder for caches; set XDG_CACHE_HOME")
    name = repository.rpartition("/")[2]
    folder = cache / "hub" / f"{repository.replace('/', '--')}@{commit}" / name
    if not (folder / MANIFEST_NAME).is_file():
        text = manifest_file.read_text(encoding="utf-8", errors="replace")
        manifest = manifest_from_json(text, f"{reference}: {MANIFEST_NAME}")
        _copy(repository, commit, manifest, folder, silent)
    return folder


def _copy(
    repository: str, commit: str, manifest: Manifest, folder: Path, silent: str | None
) -> None:
    """Copy the files of a manifest out of the hub's cache, and check them; all or nothing."""
    from vit_edge.bundle.staging import staged  # a start after the first copies none

    def check() -> None:
        if (folder / MANIFEST_NAME).is_file():
            raise _FasterError

    needed = sum(record.size for record in manifest.files.values())
    with (
        contextlib.suppress(_FasterError),
        staged(folder, option="XDG_CACHE_HOME", check=check, needed_bytes=needed) as stage,
    ):
        for name, record in manifest.files.items():
            if Path(name).name != name or name in ("", ".", "..", MANIFEST_NAME):
                raise BundleError(f"{repository}: files.{name!r}: not a plain file name")
            source = _file(repository, name, commit, silent)
            found = _copied(source, stage / name)
            if found != record.sha256:
                raise IntegrityError(
                    f"{repository} at {commit}: {name}: sha256 {found[:16]}..., its manifest says "
                    f"{record.sha256[:16]}.... Push the bundle again"
                )
        _copied(_file(repository, MANIFEST_NAME, commit, silent), stage / MANIFEST_NAME)


def _copied(source: Path, target: Path) -> str:
    """Copy a file, not a link to it; return its sha256."""
    digest = hashlib.sha256()
    with source.open("rb") as read, target.open("xb") as write:
        while chunk := read.read(2**20):
            digest.update(chunk)
            write.write(chunk)
    return digest.hexdigest()


def _file(repository: str, name: str, revision: str | None, silent: str | None) -> Path:
    """Bring one file into the hub's cache.

    Raises:
        HubError: It cannot be had.
    """
    library, constants = hub.library(), hub.library(".constants")
    try:
        with hub.hushed():
            path = library.hf_hub_download(
                repository, name, revision=revision, local_files_only=silent is not None
            )
        return Path(path)
    except Exception as error:  # whatever the HTTP library of the day raises
        missing = isinstance(error, hub.library(".errors").LocalEntryNotFoundError)
        why = silent if silent and missing else hub.reason(error)
        raise HubError(
            f"{repository} at revision {revision or 'main'}: cannot get {name}: {why}.\n"
            f"Looked at {constants.ENDPOINT} and in the cache {constants.HF_HUB_CACHE}.\n"
            "A bundle has a manifest.json, and `vit-edge push` puts it there. Without the hub: "
            "copy the bundle's folder here and name that"
        ) from error
