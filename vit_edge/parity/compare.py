"""Compare a backend with the reference: first the preprocessing, then the answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from vit_edge.bundle.golden import Golden, GoldenWriter, Probe
from vit_edge.bundle.manifest import Manifest, Preprocessing
from vit_edge.errors import BundleError, ImageError, PredictionError
from vit_edge.images.load import load_image
from vit_edge.images.preprocess import input_from_resized
from vit_edge.images.resize import resized_from_image
from vit_edge.parity import judge
from vit_edge.parity.limits import Limit, limit_of
from vit_edge.parity.logits import LogitComparison
from vit_edge.parity.result import Row
from vit_edge.parity.statistics import Difference, Floats, Repeats
from vit_edge.parity.targets import LOGITS, Target
from vit_edge.strict import json_from_record

SCHEMA_VERSION = 2  # of a bundle's parity.json
# What a batch size breaks, it breaks for any image: the largest size sees all of them, the others
# this many, so that a gate on thousands of images costs one pass over them.
OTHER_SIZES_IMAGES = 64

Statistics: TypeAlias = Difference | LogitComparison
Progress = Callable[[int], object]  # takes how many more images are done
# takes the logits of a batch: int64[N] positions, the candidate's and the reference's
Seen = Callable[[NDArray[np.int64], Floats, Floats], object]


class Reference(Protocol):
    """Images and the reference's answers: bundle.golden.Golden, or the export's own."""

    def __len__(self) -> int: ...

    def images(self, indices: Sequence[int]) -> NDArray[np.uint8]:
        """uint8[N, H, W, 3], resized."""
        ...

    def answers(self, indices: Sequence[int]) -> dict[str, NDArray[np.float32]]:
        """Output name -> float32[N, ...]."""
        ...

    def labels(self, indices: Sequence[int]) -> NDArray[np.int64] | None:
        """int64[N], the true classes, -1 where unknown; None if no image has one."""
        ...


class Runs(Protocol):
    """The part of a backend that a comparison needs."""

    def run(self, pixels: NDArray[Any]) -> dict[str, NDArray[np.float32]]:
        """See vit_edge.backends.Backend."""
        ...


@dataclass(frozen=True)
class Comparison:
    """What was found, output by output and batch size by batch size."""

    statistics: dict[str, dict[int, Statistics]]  # output -> batch size -> statistics
    limit: Limit
    target: Target | None = None  # what the user asks for on top of the limit

    @property
    def problems(self) -> list[str]:
        """Everything that exceeds the limit or misses the target; empty if all holds."""
        rows = self.rows()
        if not rows:
            return ["nothing was compared"]
        return judge.problems(rows, judge.findings(rows, self.limit, self.target))

    def rows(self) -> tuple[Row, ...]:
        """One row per output and batch size."""
        allowed = self.limit.logits.as_dict().get("relative")
        return tuple(
            Row(output, batch, {"allowed_relative": allowed, **statistics.summary()})
            for output, by_batch in self.statistics.items()
            for batch, statistics in by_batch.items()
        )


def compare_answers(
    backend: Runs,
    reference: Reference,
    manifest: Manifest,
    *,
    batches: Sequence[int],
    limit: Limit,
    target: Target | None = None,
    progress: Progress = lambda images: None,
    seen: Seen = lambda indices, answers, expected: None,
) -> Comparison:
    """Run every image of the reference at the largest batch size, and 64 of them at the others.

    The last batch of a size is filled up with the first images, so that the size itself is tried
    even where there are fewer images; no image counts twice. Kept in memory are one batch and the
    first logits of every image.

    Args:
        backend: Anything with `run`.
        reference: Resized images with their answers.
        manifest: How the backend's input follows from them.
        batches: Batch sizes, each at most the backend's limit.
        limit: What the precision allows.
        target: What must be reached besides.
        progress: Called with the number of images done since its last call.
        seen: Called with every batch of logits.

    Returns:
        The comparison; it does not raise when the limit is exceeded.
    """
    comparison = Comparison({}, limit, target)
    repeats = Repeats()
    for batch, images in compared_images(len(reference), batches).items():
        for indices in _batches(images, batch):
            answers = backend.run(input_from_resized(reference.images(indices), manifest))
            labels = reference.labels(indices)
            for output, expected in reference.answers(indices).items():
                candidate = answers[output]
                if candidate.shape != expected.shape:
                    raise PredictionError(
                        f"{output} has shape {candidate.shape}, not {expected.shape}"
                    )
                by_batch = comparison.statistics.setdefault(output, {})
                if batch not in by_batch:
                    by_batch[batch] = (
                        LogitComparison(manifest.scores, repeats=repeats)
                        if output == LOGITS
                        else Difference()
                    )
                statistics = by_batch[batch]
                if isinstance(statistics, LogitComparison):
                    statistics.add(np.array(indices), candidate, expected, labels)
                    seen(np.array(indices), candidate, expected)
                else:
                    statistics.add(np.array(indices), candidate, expected)
            progress(len(indices))
    return comparison


def gate_batches(max_batch: int) -> list[int]:
    """1, 2, 3 and the limit: sizes that were never traced, and the one that needs most memory."""
    return sorted({size for size in (1, 2, 3, max_batch) if size <= max_batch})


def compared_images(images: int, batches: Sequence[int]) -> dict[int, int]:
    """Batch size -> how many of a reference's images are compared at it."""
    return {
        batch: images if batch == max(batches) else min(images, OTHER_SIZES_IMAGES)
        for batch in batches
    }


def check_golden(golden: Golden, manifest: Manifest) -> None:
    """Refuse a golden file that is of another model, or that would prove nothing.

    Raises:
        BundleError: No images, or too few for this precision; other outputs or shapes than the
            manifest's; answers that are no finite numbers.
    """
    expected = {tensor.name: tensor.shape[1:] for tensor in manifest.outputs}
    if not len(golden) or sorted(golden.outputs) != sorted(expected):
        raise BundleError(
            f"{golden.path}: holds {len(golden)} images with {golden.outputs}, "
            f"the manifest has {list(expected)}: a golden file of another model, or none"
        )
    centred = "sqnr_centred_db" in limit_of(manifest).logits.as_dict()
    if centred and len(golden) < 2:
        raise BundleError(
            f"{golden.path}: one image cannot judge {manifest.precision}, whose limit is on what "
            "varies from image to image; record two or more"
        )
    for index in range(len(golden)):
        image, answers = golden.images([index]), golden.answers([index])
        wrong = _unusable(image, answers)
        if wrong:
            raise BundleError(f"{golden.path}: image {index}: {'; '.join(wrong)}")
        shapes = {name: values.shape[1:] for name, values in answers.items()}
        size_hw = image.shape[1:]
        if shapes != expected or size_hw != (*manifest.preprocessing.crop_hw, 3):
            raise BundleError(
                f"{golden.path}: image {index} is {list(size_hw)} with {shapes}, the manifest has "
                f"{list(manifest.preprocessing.crop_hw)} px and {expected}"
            )


def write_answers(
    writer: GoldenWriter,
    backend: Runs,
    golden: Golden,
    manifest: Manifest,
    outputs: Sequence[str],
    count: int,
) -> None:
    """Write what a backend answers to the first images of a golden file, asked one by one.

    Args:
        writer: Of another golden file, open.
        backend: What is asked.
        golden: The images, and their labels.
        manifest: How the backend's input follows from them.
        outputs: What is kept of each answer.
        count: How many images, at most as many as there are.
    """
    labels = golden.labels(range(count))
    for index in range(count):
        image = golden.images([index])
        every = backend.run(input_from_resized(image, manifest))
        answers = {output: every[output][0] for output in outputs}
        label = None if labels is None else int(labels[index])
        writer.add(golden.names[index], image[0], answers, label)


def _unusable(image: NDArray[Any], answers: Mapping[str, NDArray[Any]]) -> list[str]:
    """Why an image is none, or its answers are nothing to compare with."""
    wrong = [] if image.dtype == np.uint8 else [f"image is {image.dtype}, not uint8"]
    for name, values in answers.items():
        if values.dtype.kind != "f":
            wrong.append(f"{name} is {values.dtype}, not float32")
        elif not np.isfinite(values).all():
            wrong.append(f"{name} holds NaN or Inf: the reference itself is broken")
    return wrong


def check_probes(probes: Sequence[Probe], preprocessing: Preprocessing) -> list[str]:
    """Run the preprocessing over the probes.

    Returns:
        What differs, in words; empty if nothing does.
    """
    problems = [] if probes else ["there are no probes: the preprocessing was not checked"]
    for probe in probes:
        try:
            image = load_image(probe.data, background=preprocessing.background)
        except ImageError as error:
            problems.append(f"probe {probe.name}: {error}")
            continue
        resized = resized_from_image(image, preprocessing)
        if resized.shape != probe.resized.shape:
            problems.append(f"probe {probe.name}: {resized.shape}, expected {probe.resized.shape}")
            continue
        levels = int(np.abs(resized.astype(np.int16) - probe.resized.astype(np.int16)).max())
        if levels > probe.levels_allowed:
            problems.append(
                f"probe {probe.name}: preprocessing differs by {levels} of 255 levels, "
                f"allowed {probe.levels_allowed}"
            )
    return problems


def _batches(images: int, batch: int) -> Iterator[list[int]]:
    for start in range(0, images, batch):
        yield [index % images for index in range(start, start + batch)]


def as_json(comparison: Comparison, facts: Mapping[str, str]) -> dict[str, Any]:
    """What parity.json holds.

    Args:
        comparison: What was found.
        facts: Of the backend; under "simulated" how, if it cannot run this precision itself.
    """
    target, rows, problems = comparison.target, comparison.rows(), comparison.problems
    return {
        "schema_version": SCHEMA_VERSION,
        "passed": not problems,
        "problems": problems,
        "limit": comparison.limit.as_dict(),
        "target": None if target is None else target.as_dict(),
        "proofs": json_from_record(judge.proofs(rows, target)),
        "simulated": facts.get("simulated"),
        "facts": dict(facts),
        "comparisons": json_from_record(rows),
    }
