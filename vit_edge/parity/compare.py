"""Compare a backend with the reference: first the preprocessing, then the answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from vit_edge.errors import BundleError, ImageError, PredictionError
from vit_edge.images import load_image
from vit_edge.manifest import Manifest, Preprocessing
from vit_edge.parity.golden import Golden, Probe
from vit_edge.parity.limits import Limit
from vit_edge.parity.statistics import Difference
from vit_edge.preprocess import pixels_from_resized, resized_from_image

Progress = Callable[[int], object]  # told how many more images are done


class Reference(Protocol):
    """Images and the reference's answers: parity.golden.Golden, or the export's own."""

    def __len__(self) -> int: ...

    def images(self, indices: Sequence[int]) -> NDArray[np.uint8]:
        """uint8[N, H, W, 3], resized."""
        ...

    def answers(self, indices: Sequence[int]) -> dict[str, NDArray[np.float32]]:
        """Output name -> float32[N, ...]."""
        ...


class Runs(Protocol):
    """The part of a backend that a comparison needs."""

    def run(self, pixels: NDArray[Any]) -> dict[str, NDArray[np.float32]]:
        """See vit_edge.backends.Backend."""
        ...


@dataclass(frozen=True)
class Comparison:
    """What was found, output by output and batch size by batch size."""

    differences: dict[str, dict[int, Difference]]  # output -> batch size -> difference
    limit: Limit
    probe_problems: list[str] = field(default_factory=list)

    @property
    def problems(self) -> list[str]:
        """Everything that exceeds the limit; empty if the comparison passes."""
        found = list(self.probe_problems)
        if not self.differences:
            found.append("nothing was compared")
        for output, by_batch in self.differences.items():
            for batch, difference in by_batch.items():
                if difference.non_finite:
                    found.append(f"{output}, batch {batch}: {difference.non_finite} NaN or Inf")
                elif not difference.relative <= self.limit.relative:
                    found.append(
                        f"{output}, batch {batch}: max |diff| is {difference.relative:.2e} of "
                        f"max |{output}|, allowed {self.limit.relative:.0e}; worst is image "
                        f"{difference.worst_image}"
                    )
        return found

    def summary(self) -> list[dict[str, Any]]:
        """One row per output and batch size, ready for JSON."""
        return [
            {
                "output": output,
                "batch": batch,
                "images": difference.images,
                "max_abs_diff": difference.max_abs_diff,
                "max_abs_reference": difference.max_abs_reference,
                "relative": difference.relative,
                "allowed_relative": self.limit.relative,
                "top1_agreement": difference.agreement if output == "logits" else None,
                "cosine_min": difference.cosine_min,
                "worst_image": difference.worst_image,
                "non_finite": difference.non_finite,
            }
            for output, by_batch in self.differences.items()
            for batch, difference in by_batch.items()
        ]


def compare_answers(
    backend: Runs,
    reference: Reference,
    preprocessing: Preprocessing,
    *,
    batches: Sequence[int],
    limit: Limit,
    progress: Progress = lambda images: None,
) -> Comparison:
    """Run every image of the reference at every batch size.

    The last batch of a size is filled up with the first images, so that the size itself is tried
    even where there are fewer images.

    Args:
        backend: Anything with `run`.
        reference: Resized images with their answers.
        preprocessing: How their pixels follow.
        batches: Batch sizes, each at most the backend's limit.
        limit: What is allowed.
        progress: Called with the number of images done since its last call.

    Returns:
        The comparison; it does not raise when the limit is exceeded.
    """
    differences: dict[str, dict[int, Difference]] = {}
    for batch in batches:
        for indices in _batches(len(reference), batch):
            pixels = pixels_from_resized(reference.images(indices), preprocessing)
            found = backend.run(pixels)
            for output, expected in reference.answers(indices).items():
                if found[output].shape != expected.shape:
                    raise PredictionError(
                        f"{output} has shape {found[output].shape}, not {expected.shape}"
                    )
                by_batch = differences.setdefault(output, {})
                difference = by_batch.setdefault(batch, Difference())
                difference.add(np.array(indices), found[output], expected)
            progress(len(indices))
    return Comparison(differences, limit)


def gate_batches(max_batch: int) -> list[int]:
    """1, 2, 3 and the limit: sizes that were never traced, and the one that needs most memory."""
    return sorted({size for size in (1, 2, 3, max_batch) if size <= max_batch})


def check_golden(golden: Golden, manifest: Manifest) -> None:
    """Refuse a golden file that is of another model, or that would prove nothing.

    Raises:
        BundleError: No images, other outputs, or other shapes than the manifest's.
    """
    expected = {tensor.name: tensor.shape[1:] for tensor in manifest.outputs}
    if not len(golden) or sorted(golden.outputs) != sorted(expected):
        raise BundleError(
            f"{golden.path}: holds {len(golden)} images with {golden.outputs}, "
            f"the manifest has {list(expected)}: a golden file of another model, or none"
        )
    for index in range(len(golden)):
        shapes = {name: values.shape[1:] for name, values in golden.answers([index]).items()}
        size_hw = golden.images([index]).shape[1:]
        if shapes != expected or size_hw != (*manifest.preprocessing.crop_hw, 3):
            raise BundleError(
                f"{golden.path}: image {index} is {list(size_hw)} with {shapes}, the manifest has "
                f"{list(manifest.preprocessing.crop_hw)} px and {expected}"
            )


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
        found = resized_from_image(image, preprocessing)
        if found.shape != probe.resized.shape:
            problems.append(f"probe {probe.name}: {found.shape}, expected {probe.resized.shape}")
            continue
        levels = int(np.abs(found.astype(np.int16) - probe.resized.astype(np.int16)).max())
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
    """What parity.json holds."""
    return {
        "schema_version": 1,
        "passed": not comparison.problems,
        "problems": comparison.problems,
        "limit": {"relative": comparison.limit.relative, "reason": comparison.limit.reason},
        "facts": dict(facts),
        "comparisons": comparison.summary(),
    }
