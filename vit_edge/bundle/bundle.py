"""The bundle: a directory that carries everything that decides an answer."""

from __future__ import annotations

import dataclasses
import json
import os
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from vit_edge.bundle.lfs import another_size
from vit_edge.bundle.manifest import MANIFEST_NAME as MANIFEST_NAME
from vit_edge.bundle.manifest import FileRecord, Manifest, json_from_manifest, manifest_from_json
from vit_edge.errors import BundleError

HUB_PREFIX = "hf:"  # of a bundle that is on the Hugging Face hub
MODEL_NAME = "model.onnx"  # and model.onnx.data where the weights exceed 2 GiB
PREPROCESS_NAME = "preprocess.onnx"  # any RGB image -> the model's input; older bundles have none
END_TO_END_NAME = "end-to-end.onnx"  # both in one, where the export was asked for it
GOLDEN_NAME = "golden.npz"  # the reference's answers
LABELS_NAME = "labels.txt"  # one label a line
PARITY_NAME = "parity.json"  # what was compared, what was allowed, what was found
LAYOUT_NAME = "transformers.js"  # a folder that others load, where asked for; no part of it either
ENGINES_NAME = "engines"  # made on the device by `build`; no part of the bundle's identity

_MANIFEST_LIMIT_BYTES = 16 * 2**20  # a manifest is a few KB; more is no manifest
_TEXT_LIMIT_BYTES = 64 * 2**20  # labels of a million classes, or a gate's whole report


def local_folder(path: str | os.PathLike[str]) -> Path:
    """Return a bundle's folder on this machine; one of the hub's is brought first."""
    if not (reference := os.fspath(path)).startswith(HUB_PREFIX):
        return Path(path)
    from vit_edge.bundle.hub import fetch_bundle  # a folder needs none of it

    return fetch_bundle(reference)


@dataclass(frozen=True)
class Bundle:
    """A bundle that was read: its manifest and labels; the other files stay on disk."""

    path: Path
    manifest: Manifest
    labels: tuple[str, ...]

    @classmethod
    def read(cls, path: str | os.PathLike[str] | Bundle) -> Bundle:
        """Read and check a bundle's manifest, file sizes and labels; hashes are verify's work.

        A Bundle that was read is returned as it is; `hf:ORG/NAME@REVISION` is brought from the hub.

        Raises:
            BundleError: No such directory, no manifest, or anything in it that does not fit.
        """
        if isinstance(path, Bundle):
            return path
        folder = local_folder(path)
        manifest_path = folder / MANIFEST_NAME
        if not folder.is_dir():
            what = "is a file; give its directory" if folder.is_file() else "no such directory"
            raise BundleError(f"{folder}: {what}; vit-edge export makes bundles")
        try:
            if manifest_path.stat().st_size > _MANIFEST_LIMIT_BYTES:
                raise BundleError(f"{manifest_path}: larger than any manifest is")
            text = manifest_path.read_text(encoding="utf-8")
        except FileNotFoundError:
            raise BundleError(f"{folder}: no {MANIFEST_NAME}, so this is no bundle") from None
        except (OSError, UnicodeDecodeError) as error:
            raise BundleError(f"{manifest_path}: cannot be read: {error}") from None
        manifest = manifest_from_json(text, str(manifest_path))
        problems = _file_problems(folder, manifest)
        if problems:
            raise BundleError(f"{folder}: {len(problems)} problem(s):\n  " + "\n  ".join(problems))
        return cls(folder, manifest, _read_labels(folder / LABELS_NAME, manifest))

    @property
    def model_path(self) -> Path:
        """The ONNX file."""
        return self.path / MODEL_NAME

    @property
    def preprocess_path(self) -> Path | None:
        """The ONNX file of the preprocessing; None in bundles of 0.2 and before."""
        return self.path / PREPROCESS_NAME if PREPROCESS_NAME in self.manifest.files else None

    @property
    def end_to_end_path(self) -> Path | None:
        """The ONNX file that answers RGB images; None where there is none."""
        return self.path / END_TO_END_NAME if END_TO_END_NAME in self.manifest.files else None

    @property
    def golden_path(self) -> Path:
        """The reference's answers."""
        return self.path / GOLDEN_NAME

    @property
    def model_files(self) -> dict[str, FileRecord]:
        """model.onnx and what holds its weights beside it."""
        files = self.manifest.files
        return {name: files[name] for name in sorted(files) if name.startswith(MODEL_NAME)}

    @property
    def model_bytes(self) -> int:
        """The size of the model's files."""
        return sum(record.size for record in self.model_files.values())

    @property
    def model_sha256(self) -> str:
        """What engines are keyed by: one hash over the model's files, in the order of names."""
        hashes = [record.sha256 for record in self.model_files.values()]
        return hashes[0] if len(hashes) == 1 else sha256(".".join(hashes).encode()).hexdigest()

    def parity(self) -> dict[str, Any]:
        """What the gate found at export.

        Raises:
            BundleError: parity.json is damaged.
        """
        path = self.path / PARITY_NAME
        try:
            found = json.loads(_read_text(path))
        except (OSError, ValueError, RecursionError) as error:
            raise BundleError(f"{path}: cannot be read: {error}") from None
        if not isinstance(found, dict) or not {"passed", "limit", "facts"} <= found.keys():
            raise BundleError(f"{path}: not what an export writes; export the bundle again")
        return found


def _file_problems(folder: Path, manifest: Manifest) -> list[str]:
    problems = []
    for name, record in manifest.files.items():
        if Path(name).name != name or name in {"", ".", "..", MANIFEST_NAME} or "\0" in name:
            problems.append(f"files.{name!r}: not a plain file name")
            continue
        file = folder / name
        if not file.is_file():
            problems.append(f"{name}: missing")
        elif file.stat().st_size != record.size:
            problems.append(f"{name}: {another_size(file, record.size)}")
    return problems


def _read_labels(path: Path, manifest: Manifest) -> tuple[str, ...]:
    try:
        # not splitlines: a label may hold any other character that counts as a line's end there
        labels = tuple(_read_text(path).split("\n")[:-1])
    except (OSError, UnicodeDecodeError) as error:
        raise BundleError(f"{path}: cannot be read: {error}") from None
    if len(labels) != manifest.num_classes:
        raise BundleError(f"{path}: {len(labels)} labels for {manifest.num_classes} classes")
    return labels


def _read_text(path: Path) -> str:
    """Read a text file, but none that is sparse or endless."""
    with path.open("rb") as file:
        content = file.read(_TEXT_LIMIT_BYTES + 1)
    if len(content) > _TEXT_LIMIT_BYTES:
        raise BundleError(f"{path}: more than {_TEXT_LIMIT_BYTES:,} bytes; export it again")
    return content.decode("utf-8").replace("\r\n", "\n")


def sha256_of(path: Path) -> str:
    """Hash a file (about 2 GB/s)."""
    digest = sha256()
    with path.open("rb") as file:
        while chunk := file.read(2**20):
            digest.update(chunk)
    return digest.hexdigest()


def hashes_below(folder: Path) -> dict[str, str]:
    """Hash every file below a folder: path in it -> sha256."""
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return {file.relative_to(folder).as_posix(): sha256_of(file) for file in files}


def file_records(folder: Path) -> dict[str, FileRecord]:
    """Hash every file of a bundle's folder but its manifest."""
    return {
        file.name: FileRecord(file.stat().st_size, sha256_of(file))
        for file in sorted(folder.iterdir())
        if file.is_file() and file.name != MANIFEST_NAME
    }


def write_manifest(folder: Path, manifest: Manifest) -> Manifest:
    """Hash every file of `folder` into the manifest and write it: the last step of a bundle."""
    manifest = dataclasses.replace(manifest, files=file_records(folder))
    (folder / MANIFEST_NAME).write_text(json_from_manifest(manifest), encoding="utf-8")
    return manifest
