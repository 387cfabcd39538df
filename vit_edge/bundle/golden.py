"""golden.npz: the reference's answers, so that a device without torch can check itself.

    probe/NAME              uint8[bytes]: a small encoded image file
    probe_resized/NAME      uint8[H, W, 3]: what resize and crop must make of it
    image/0000              uint8[H, W, 3]: resized image; its pixels follow from the manifest
    logits/0000, ...        float32[...]: the reference's answer, one member per image and output
    meta                    JSON: schema version, image names, dtype of the reference; labels, one
                            class per image (-1: unknown), where the images have some

Members are written and read one at a time: a comparison never holds more than one batch.
"""

from __future__ import annotations

import contextlib
import json
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vit_edge.errors import BundleError, ResourceError
from vit_edge.machine.files import aside

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
    with GoldenWriter(
        path,
        probes=probes,
        outputs=tuple(answers),
        reference_dtype=reference_dtype,
        labelled=labels is not None,
    ) as writer:
        for index, name in enumerate(names):
            found = {output: values[index] for output, values in answers.items()}
            writer.add(name, images[index], found, None if labels is None else labels[index])


class GoldenWriter:
    """A golden file in the making: one image at a time, the same bytes for the same content.

    It appears when the block ends well, in place of what was there; after an error nothing does.
    """

    def __init__(
        self,
        path: Path,
        *,
        probes: Sequence[Probe],
        outputs: Sequence[str],
        reference_dtype: str,
        labelled: bool = False,
    ) -> None:
        """Take note of what the file is about; nothing is written before the block begins.

        Args:
            path: The .npz to write.
            probes: Checks of the preprocessing.
            outputs: Which answers there are of each image.
            reference_dtype: What the reference computed in.
            labelled: Whether images have classes.
        """
        self._path = path
        self._probes = tuple(probes)
        self._outputs = tuple(outputs)
        self._reference_dtype = reference_dtype
        self._names: list[str] = []
        self._labels: list[int] | None = [] if labelled else None

    def __enter__(self) -> GoldenWriter:
        """Begin the file.

        Raises:
            ResourceError: The folder is missing, full, or cannot be written.
        """
        with self._writing(), contextlib.ExitStack() as on_error:
            file = on_error.enter_context(aside(self._path))
            self._archive = on_error.enter_context(
                zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, allowZip64=True)
            )
            for probe in self._probes:
                self._write(f"probe/{probe.name}", np.frombuffer(probe.data, np.uint8))
                self._write(f"probe_resized/{probe.name}", probe.resized)
            on_error.push(self._finish)
            self._closing = on_error.pop_all()
        return self

    def add(
        self,
        name: str,
        image: NDArray[np.uint8],
        answers: Mapping[str, NDArray[np.float32]],
        label: int | None = None,
    ) -> None:
        """Write one image.

        Args:
            name: For messages.
            image: uint8[H, W, 3], resized.
            answers: Output name -> float32[...], of all outputs.
            label: Its true class; None where unknown.

        Raises:
            ResourceError: The disk is full.
        """
        index = len(self._names)
        with self._writing():
            self._write(f"image/{index:04d}", image)
            for output in self._outputs:
                self._write(f"{output}/{index:04d}", answers[output])
        self._names.append(name)
        if self._labels is not None:
            self._labels.append(-1 if label is None else int(label))

    def __exit__(self, kind: type[BaseException] | None, *error: Any) -> None:
        """Write the index and put the file in its place, or drop what there is of it."""
        with self._writing():
            self._closing.__exit__(kind, *error)

    def _finish(self, kind: type[BaseException] | None, *error: object) -> None:
        if kind is None:
            self._write("meta", np.frombuffer(json.dumps(self._meta()).encode(), np.uint8))

    def _meta(self) -> dict[str, Any]:
        labels = {} if self._labels is None else {"labels": self._labels}
        return {
            "schema_version": SCHEMA_VERSION,
            "reference_dtype": self._reference_dtype,
            "images": self._names,
            "outputs": list(self._outputs),
            "probes": [probe.name for probe in self._probes],
            **labels,
        }

    def _write(self, member: str, array: NDArray[Any]) -> None:
        # A ZipInfo of its own has the date 1980-01-01: no clock gets into the bytes.
        info = zipfile.ZipInfo(f"{member}.npy")
        info.compress_type = zipfile.ZIP_DEFLATED
        with self._archive.open(info, "w", force_zip64=True) as file:
            np.lib.format.write_array(file, np.asarray(array), allow_pickle=False)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise ResourceError(
                f"{self._path}: cannot be written: {error.strerror}; make room, or choose another "
                "place"
            ) from error


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
