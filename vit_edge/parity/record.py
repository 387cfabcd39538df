"""vit-edge parity record: a golden file from any folder of images.

The bundle's own golden.npz has a few images, which prove numerics; a rate such as "99 % agreement"
needs hundreds. What is recorded here serves every bundle of the same model, whatever its precision.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vit_edge import backends, cli
from vit_edge.backends import Backend
from vit_edge.bundle import Bundle
from vit_edge.bundle.bundle import sha256_of
from vit_edge.bundle.golden import Golden, GoldenWriter, Probe
from vit_edge.bundle.manifest import Manifest, Preprocessing
from vit_edge.cli.progress import Progress
from vit_edge.errors import BundleError, ImageError, ParityError, PredictionError, UsageError
from vit_edge.images.folders import (
    FOLDERS,
    UNKNOWN,
    Labelled,
    LabelledImage,
    Unlabelled,
    Unreadable,
    as_counted,
    read_labelled,
)
from vit_edge.images.preprocess import input_from_resized, resized_from_source
from vit_edge.parity.compare import check_probes
from vit_edge.predictor import STREAM_BATCH

REFERENCE = "eager"  # models.vit itself, in the precision that the export had for its reference


class Recorded(NamedTuple):
    """What went into a golden file."""

    images: int
    reference_dtype: str
    unreadable: Unreadable


class _Resized(NamedTuple):
    image: LabelledImage
    pixels: NDArray[np.uint8]  # [H, W, 3]


def record(
    bundle: Bundle,
    images: Labelled,
    out: Path,
    *,
    backend_name: str = REFERENCE,
    limit: int | None = None,
    labelled: bool = False,
) -> Recorded:
    """Write a golden file. In memory is one batch, whatever the number of images.

    Args:
        bundle: The reference, of precision fp32.
        images: What to record; one that cannot be read is left out.
        out: The .npz; it appears when all is done, in place of what was there.
        backend_name: What runs the reference.
        limit: At most so many images, evenly spread over all; None for all.
        labelled: Whether `images` have classes.

    Raises:
        UsageError: A limit below 1.
        BundleError: The bundle is not fp32, or no image could be read.
        BackendError: The backend cannot be used here, or refuses the bundle.
        ParityError: The preprocessing here is not what the bundle expects.
        PredictionError: The reference answered NaN or Inf.
        ResourceError: The file cannot be written.
    """
    manifest = bundle.manifest
    if manifest.precision != "fp32":
        raise BundleError(
            f"{bundle.path}: a reference must be fp32, this is {manifest.precision}; record with "
            "the fp32 bundle of the same model, the file then serves this one too"
        )
    if limit is not None and limit < 1:
        raise UsageError(f"--limit must be at least 1, not {limit}")
    probes = _checked_probes(bundle)
    backend = _load(backend_name, bundle)
    dtype = _computed_in(backend, bundle)
    chosen = _spread(images, limit)
    unreadable = Unreadable()
    writer = GoldenWriter(
        out,
        probes=probes,
        outputs=[tensor.name for tensor in manifest.outputs],
        reference_dtype=dtype,
        labelled=labelled,
    )
    count = 0
    with Progress("recording", min(len(images), limit or len(images))) as progress, writer:
        resized = _resized(chosen, manifest.preprocessing, unreadable, progress)
        for batch in _batches(resized, min(STREAM_BATCH, manifest.max_batch)):
            answers = _answered(backend, batch, manifest)
            for row, (image, pixels) in enumerate(batch):
                label = None if image.label == UNKNOWN else image.label
                its_own = {output: values[row] for output, values in answers.items()}
                writer.add(image.name, pixels, its_own, label)
            count += len(batch)
        if not count:
            raise BundleError(f"{out}: none of the images could be read{unreadable.text()}")
    backend.close()
    return Recorded(count, dtype, unreadable)


def _checked_probes(bundle: Bundle) -> list[Probe]:
    """The bundle's probes, which this machine's preprocessing must pass."""
    with Golden(bundle.golden_path) as own:
        probes = own.probes()
    wrong = check_probes(probes, bundle.manifest.preprocessing)
    if wrong:
        raise ParityError(
            "images would be recorded wrongly: this machine's preprocessing is not the bundle's:"
            + "".join(f"\n  {problem}" for problem in wrong)
        )
    return probes


def _load(name: str, bundle: Bundle) -> Backend:
    if name != REFERENCE:
        return backends.module(name).load(bundle)
    load: Callable[..., Backend] = backends.module(name).load  # each has options of its own
    return load(bundle, dtype=bundle.manifest.reference_dtype)


def _computed_in(backend: Backend, bundle: Bundle) -> str:
    """What the file says of its reference: float64, or which runtime it was."""
    facts = backend.facts
    if facts["backend"] == REFERENCE:
        return facts["precision"]
    return f"{bundle.manifest.precision} on {facts['runtime']}"


def _spread(images: Labelled, limit: int | None) -> Iterator[LabelledImage]:
    """All images, or `limit` of them at even distances."""
    kept = np.linspace(0, len(images) - 1, min(limit or len(images), len(images))).round()
    wanted = iter(kept.astype(np.int64).tolist())
    following = next(wanted, None)
    for index, image in enumerate(as_counted(images)):
        if index == following:
            yield image
            following = next(wanted, None)


def _resized(
    images: Iterator[LabelledImage], spec: Preprocessing, unreadable: Unreadable, progress: Progress
) -> Iterator[_Resized]:
    for image in images:
        progress(1)
        try:
            yield _Resized(image, resized_from_source(image.path, spec))
        except ImageError as error:
            unreadable.add(error)


def _batches(items: Iterator[_Resized], size: int) -> Iterator[list[_Resized]]:
    batch = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def _answered(
    backend: Backend, batch: list[_Resized], manifest: Manifest
) -> dict[str, NDArray[np.float32]]:
    """Output name -> float32[N, ...], finite."""
    resized = np.stack([item.pixels for item in batch])
    answers = backend.run(input_from_resized(resized, manifest))
    broken = [name for name, values in answers.items() if not np.isfinite(values).all()]
    if broken:
        raise PredictionError(
            f"the reference's {', '.join(broken)} hold NaN or Inf for one of "
            f"{', '.join(item.image.name for item in batch)}: the weights are broken, or the "
            "preprocessing is not theirs"
        )
    return answers


def parser() -> cli.Parser:
    """The command line."""
    options = cli.bundle_parser(
        "parity record",
        "Write a golden file of any folder of images: resized pixels, and what the fp32 bundle "
        "answers to them. It serves `vit-edge parity --golden` for every precision of "
        "the same model. An image that cannot be read is listed and left out.",
        "vit-edge parity record bundles/mine-fp32 --images photos --out mine.npz\n"
        "         vit-edge parity bundles/mine-int8 --golden mine.npz",
    )
    options.add_argument("--images", type=Path, required=True, metavar="DIR", help="where they lie")
    cli.add_out(options, "FILE", "the .npz to write", required=True)
    options.add_argument(
        "--limit", type=int, metavar="N", help="at most N images, evenly spread; default: all"
    )
    options.add_argument(
        "--labels-from",
        metavar="SOURCE",
        help=f"keep the true classes too: {FOLDERS}, or a CSV file with path,label a line",
    )
    names = ", ".join(backends.names())
    options.add_argument(
        "-b",
        "--backend",
        default=REFERENCE,
        metavar="NAME",
        help=f"what runs the reference, of {names}; default: %(default)s, PyTorch in float64",
    )
    options.add_argument("--force", action="store_true", help="replace FILE if it is there")
    return options


def main(argv: list[str] | None = None) -> int:
    """Record from the command line."""
    return cli.guarded(lambda: _run(parser().parse_args(argv)))


def _run(arguments: argparse.Namespace) -> int:
    out: Path = arguments.out
    if out.exists() and not arguments.force:
        raise UsageError(f"{out}: exists; --force replaces it")
    if arguments.backend not in backends.names():
        there = ", ".join(backends.names())
        raise UsageError(f"no backend {arguments.backend!r}; there are: {there}")
    bundle = Bundle.read(arguments.bundle)
    source = arguments.labels_from
    images: Labelled = (
        Unlabelled(arguments.images)
        if source is None
        else read_labelled(arguments.images, source, bundle.labels)
    )
    done = record(
        bundle,
        images,
        out,
        backend_name=arguments.backend,
        limit=arguments.limit,
        labelled=source is not None,
    )
    written: dict[str, Any] = {
        "golden": str(out),
        "bytes": out.stat().st_size,
        "sha256": sha256_of(out),
        "images": done.images,
        "reference_dtype": done.reference_dtype,
        "unreadable": done.unreadable.as_dict(),
    }
    if arguments.json:
        print(json.dumps(written, indent=2))
        return 0
    print(f"golden     {out} ({written['bytes'] / 1e6:.1f} MB)")
    print(f"answers    {done.images:,} images by the {done.reference_dtype} reference")
    if done.unreadable.count:
        print(f"NOT READ   {done.unreadable.count} images, left out{done.unreadable.text()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
