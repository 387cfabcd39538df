"""golden.npz: the reference's answers, so that a device without torch can check itself.

    meta                    JSON: schema version, image names, dtype of the reference; labels, one
                            class per image (-1: unknown), where the images have some
    probe/NAME              uint8[bytes]: a small encoded image file
    probe_resized/NAME      uint8[H, W, 3]: what resize and crop must make of it
    image/0000              uint8[H, W, 3]: resized image; its pixels follow from the manifest
    logits/0000, ...        float32[...]: the reference's answer, one member per image and output

Members are read one at a time: a comparison never holds more than one batch.
"""

from __future__ import annotations

import contextlib
import json
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vit_edge.errors import BundleError

SCHEMA_VERSION = 1

# What numpy, zipfile and zlib raise over bytes that are no archive, or no longer the one written.
_DAMAGED = (
    OSError,
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    IndexError,
    EOFError,
    NotImplementedError,
    RuntimeError,
    zipfile.BadZipFile,
    zlib.error,
)


@dataclass(frozen=True)
class Probe:
    """An encoded image file and the uint8 pixels that resize and crop must make of it."""

    name: str
    data: bytes
    resized: NDArray[np.uint8]  # [H, W, 3]

    @property
    def levels_allowed(self) -> int:
        """JPEG decoders differ between boards (libjpeg); PNG is exact."""
        return 2 if self.name.endswith((".jpg", ".jpeg")) else 0


def write_golden(
    path: Path,
    *,
    probes: Sequence[Probe],
    names: Sequence[str],
    images: NDArray[np.uint8],
    answers: Mapping[str, NDArray[np.float32]],
    reference_dtype: str,
    labels: Sequence[int] | None = None,
) -> None:
    """Write a golden file, the same bytes for the same content.

    Args:
        path: The .npz to write.
        probes: Checks of the preprocessing.
        names: One per image, for messages.
        images: uint8[N, H, W, 3], resized.
        answers: Output name -> float32[N, ...].
        reference_dtype: What the reference computed in.
        labels: The true class of each image, -1 where unknown; None without any.
    """
    meta: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "reference_dtype": reference_dtype,
        "images": list(names),
        "outputs": list(answers),
        "probes": [probe.name for probe in probes],
    }
    if labels is not None:
        meta["labels"] = [int(label) for label in labels]
    members = {"meta": np.frombuffer(json.dumps(meta).encode(), np.uint8)}
    for probe in probes:
        members[f"probe/{probe.name}"] = np.frombuffer(probe.data, np.uint8)
        members[f"probe_resized/{probe.name}"] = probe.resized
    for index in range(len(names)):
        members[f"image/{index:04d}"] = images[index]
        for output, values in answers.items():
            members[f"{output}/{index:04d}"] = values[index]
    np.savez_compressed(path, **members)  # type: ignore[arg-type]


class Golden:
    """An open golden file."""

    def __init__(self, path: Path) -> None:
        """Open and check the index.

        Raises:
            BundleError: No such file, damaged, or of another schema version.
        """
        self.path = path
        with contextlib.ExitStack() as on_error:
            self._read_index(on_error)
            on_error.pop_all()

    def _read_index(self, on_error: contextlib.ExitStack) -> None:
        path = self.path
        try:
            self._handle = on_error.enter_context(path.open("rb"))
            self._file = on_error.enter_context(np.load(self._handle, allow_pickle=False))
            meta: dict[str, Any] = json.loads(bytes(self._file["meta"]))
            if meta.get("schema_version") != SCHEMA_VERSION:
                raise BundleError(
                    f"{path}: golden schema {meta.get('schema_version')!r}, "
                    f"this vit_edge reads {SCHEMA_VERSION}; export the bundle again"
                )
            self.names: list[str] = list(meta["images"])
            self.outputs: list[str] = list(meta["outputs"])
            self.probe_names: list[str] = list(meta["probes"])
            self.reference_dtype = str(meta["reference_dtype"])
            self._labels = _labels_from_meta(meta)
        except _DAMAGED as error:
            raise BundleError(f"{path}: no golden file: {error}") from None

    def __len__(self) -> int:
        return len(self.names)

    def __enter__(self) -> Golden:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()
        self._handle.close()

    def probes(self) -> list[Probe]:
        """All probes: a few small files."""
        return [
            Probe(n, bytes(self._member(f"probe/{n}")), self._member(f"probe_resized/{n}"))
            for n in self.probe_names
        ]

    def images(self, indices: Sequence[int]) -> NDArray[np.uint8]:
        """uint8[N, H, W, 3], resized images."""
        return np.stack([self._member(f"image/{i:04d}") for i in indices])

    def answers(self, indices: Sequence[int]) -> dict[str, NDArray[np.float32]]:
        """Output name -> float32[N, ...] of the reference."""
        return {
            output: np.stack([self._member(f"{output}/{i:04d}") for i in indices])
            for output in self.outputs
        }

    def labels(self, indices: Sequence[int]) -> NDArray[np.int64] | None:
        """int64[N], the true classes, -1 where unknown; None if no image has one."""
        return None if self._labels is None else self._labels[list(indices)]

    def _member(self, name: str) -> NDArray[Any]:
        try:
            array: NDArray[Any] = self._file[name]
        except _DAMAGED as error:
            raise BundleError(f"{self.path}: {name} cannot be read: {error}") from None
        return array


def _labels_from_meta(meta: Mapping[str, Any]) -> NDArray[np.int64] | None:
    """Read the optional labels.

    Raises:
        ValueError: Not one class, or -1, per image.
    """
    labels = meta.get("labels")
    if labels is None:
        return None
    usable = [type(label) is int and -1 <= label < 2**31 for label in labels]
    if len(usable) != len(meta["images"]) or not all(usable):
        raise ValueError(f"{len(meta['images'])} images, but their labels are {labels!r:.60}")
    return np.array(labels, np.int64)
