"""Find the first place where a candidate leaves the reference: block first, then the step in it.

Both graphs get the same tensors as extra outputs and run one after the other, each in a child
process, on a few images; the reference's tensors wait on disk. Extra outputs undo fusions, so the
candidate's logits are compared with and without them: what vanishes then was a fusion's fault. At
last the suspected step is given the reference's values: if the logits recover, it is to blame.
"""

from __future__ import annotations

import contextlib
import logging
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vit_edge import isolate, trust, tuned
from vit_edge.bundle import MANIFEST_NAME, Bundle
from vit_edge.errors import BundleError, UsageError
from vit_edge.parity.compare import LOGITS
from vit_edge.parity.golden import Golden, GoldenWriter
from vit_edge.parity.limits import limit_for
from vit_edge.parity.statistics import Noise, rows
from vit_edge.parity.taps import Apart, Tap, boundaries, edited, inside, present, tapped
from vit_edge.preprocess import input_from_resized
from vit_edge.wire.edit import with_values

_LOG = logging.getLogger(__name__)

IMAGES = 4  # 197 tokens each: 800 samples of every channel
# Above this the noise of a sound graph begins; what falls from there to there is no fault. fp32
# limits max |diff| to 1e-5, about 100 dB; the others limit the SQNR of the logits themselves.
_SOUND_DB = 25.0  # over the limit
_EXACT_DB = 100.0
# A place is to blame if it adds at least three times the noise that it was given.
FALL_DB = 6.0


class Step(NamedTuple):
    """What was found at one tap."""

    tap: Tap
    sqnr_db: float
    largest_input: float  # the reference's largest |value| that goes into it


@dataclass(frozen=True)
class Localized:
    """Where a candidate leaves the reference."""

    steps: tuple[Step, ...]  # the boundaries of blocks, then the inside of the blamed one
    sentence: str

    def blocks(self) -> list[dict[str, Any]]:
        """Ready for JSON."""
        return [{"tap": s.tap.place, "sqnr_db": round(s.sqnr_db, 2)} for s in self.steps]


def localize(
    candidate: Bundle,
    reference: Bundle,
    *,
    backend: str,
    golden: Path,
    memory_limit_bytes: int | None = None,
    timeout_s: float | None = None,
) -> Localized:
    """Find the first block, and the step in it, where the candidate leaves the reference.

    Args:
        candidate: The bundle in question.
        reference: The fp32 bundle of the same model.
        backend: The candidate's; the reference runs on "auto".
        golden: Images to look at; the first IMAGES are.
        memory_limit_bytes: Of each child.
        timeout_s: Of each child.

    Raises:
        UsageError: The bundles are not of one model.
        BundleError: A graph of another exporter, whose names are not ours.
        ResourceError: A child died.
    """
    _check_pair(candidate, reference)
    call = partial(
        isolate.call_in_child, memory_limit_bytes=memory_limit_bytes, timeout_s=timeout_s
    )
    search = _Search(candidate, reference, backend, golden, call)
    whole = search.steps(boundaries(_depth(candidate)))
    ceiling_db = _ceiling_db(candidate)
    worst = _largest_fall(whole, ceiling_db)
    if worst is None:
        return Localized(tuple(whole), _spread_out(whole))
    block = whole.index(worst) - 1
    within: list[Step] = []
    if block >= 0:
        within = search.steps(inside(block))
        worst = _largest_fall(within, ceiling_db) or worst
    sentence = _sentence(worst, _before(worst, within or whole, ceiling_db))
    return Localized((*whole, *within), f"{sentence}; {search.cure(worst.tap)}")


class _Search:
    """Runs both graphs with taps, in children."""

    def __init__(
        self, candidate: Bundle, reference: Bundle, backend: str, golden: Path, call: Any
    ) -> None:
        self._candidate, self._reference = candidate, reference
        self._backend, self._golden, self._call = backend, golden, call

    def steps(self, taps: Sequence[Tap]) -> list[Step]:
        """How far the candidate lies from the reference at each of them that both have."""
        found = present(taps, self._candidate, self._reference)
        _LOG.info("looking at %s to %s", found[0].place, found[-1].place)
        with _scratch() as scratch:
            expected = self._shown(found, scratch)
            ours = tapped(self._candidate, found, _folder(scratch, "candidate"))
            numbers = self._call(
                "vit_edge.parity.localize:apart_here", ours.path, self._backend, expected, found
            )
        return [Step(tap, *numbers[tap.tensor]) for tap in found]

    def cure(self, tap: Tap) -> str:
        """What the logits are like as they are, with the tap, and with the reference's values."""
        _LOG.info("giving %s the reference's values", tap.place)
        with _scratch() as scratch:
            expected = self._shown([tap], scratch)
            ours = tapped(self._candidate, [tap], _folder(scratch, "candidate"))
            judge = partial(self._call, "vit_edge.parity.localize:logits_here")
            plain_db = judge(self._candidate.path, self._backend, self._golden)
            tapped_db = judge(ours.path, self._backend, self._golden)
            cured_db = self._call(
                "vit_edge.parity.localize:cured_here",
                self._candidate.path, self._backend, self._golden, expected, tap,
                _folder(scratch, "cured"),
            )  # fmt: skip
        if tapped_db > plain_db + FALL_DB:
            return (
                f"but looking there lifts the logits from {plain_db:.0f} dB to {tapped_db:.0f} dB: "
                "the fault is in what the runtime fuses there"
            )
        return (
            f"with the reference's values there the logits are at {cured_db:.0f} dB "
            f"instead of {plain_db:.0f} dB"
        )

    def _shown(self, taps: Sequence[Tap], scratch: Path) -> Path:
        theirs = tapped(self._reference, taps, _folder(scratch, "reference"))
        expected = scratch / "expected.npz"
        self._call("vit_edge.parity.localize:show_here", theirs.path, self._golden, expected, taps)
        return expected


def show_here(path: Path, golden_path: Path, target: Path, taps: Sequence[Tap]) -> None:
    """Write the reference's tensors to a golden file; runs in a child."""
    bundle = Bundle.read(path)
    outputs = [tap.output for tap in taps]
    with Golden(golden_path) as golden:
        backend = tuned.load_named(tuned.AUTO, bundle)
        with GoldenWriter(
            target, probes=[], outputs=outputs, reference_dtype=bundle.manifest.precision
        ) as writer:
            for index in range(min(IMAGES, len(golden))):
                image = golden.images([index])
                found = backend.run(input_from_resized(image, bundle.manifest))
                answers = {output: found[output][0] for output in outputs}
                writer.add(golden.names[index], image[0], answers)
        backend.close()


def apart_here(
    path: Path, backend_name: str, expected: Path, taps: Sequence[Tap]
) -> dict[str, tuple[float, float]]:
    """How far the candidate's tensors lie from the reference's; runs in a child.

    Returns:
        Tensor -> SQNR in dB, and the largest |value| that goes into it.
    """
    bundle = Bundle.read(path)
    apart = {tap.tensor: Apart(scaled=tap.scaled) for tap in taps}
    with Golden(expected) as golden:
        backend = tuned.load_named(backend_name, bundle)
        for index in range(len(golden)):
            image = golden.images([index])
            found = backend.run(input_from_resized(image, bundle.manifest))
            answers = golden.answers([index])
            for tap in taps:
                apart[tap.tensor].add(found[tap.output], answers[tap.output])
        backend.close()
    largest = {tensor: numbers.largest() for tensor, numbers in apart.items()}
    return {
        tap.tensor: (
            apart[tap.tensor].sqnr_db(),
            max((largest[name] for name in tap.inputs if name in largest), default=0.0),
        )
        for tap in taps
    }


def logits_here(path: Path, backend_name: str, golden_path: Path) -> float:
    """The SQNR of the logits of the first images, in dB; runs in a child."""
    bundle = Bundle.read(path)
    noise = Noise()
    with Golden(golden_path) as golden:
        backend = tuned.load_named(backend_name, bundle)
        for index in range(min(IMAGES, len(golden))):
            found = backend.run(input_from_resized(golden.images([index]), bundle.manifest))
            noise.add(rows(found[_main_output(bundle)]), rows(_expected(golden, index, bundle)))
        backend.close()
    return _decibels(noise)


def cured_here(
    path: Path, backend_name: str, golden_path: Path, expected: Path, tap: Tap, folder: Path
) -> float:
    """The same with the reference's values at a tap; runs in a child.

    The values are those of one image, so each image has a graph of its own.
    """
    bundle = Bundle.read(path)
    noise = Noise()
    with Golden(golden_path) as golden, Golden(expected) as given:
        for index in range(len(given)):
            values = given.answers([index])[tap.output].astype(np.float32)
            place = _folder(folder, str(index))
            cured = edited(bundle, with_values(bundle.model_path, {tap.tensor: values}), place)
            backend = tuned.load_named(backend_name, cured)
            found = backend.run(input_from_resized(golden.images([index]), bundle.manifest))
            backend.close()
            noise.add(rows(found[_main_output(bundle)]), rows(_expected(golden, index, bundle)))
    return _decibels(noise)


def _main_output(bundle: Bundle) -> str:
    names = [output.name for output in bundle.manifest.outputs]
    return LOGITS if LOGITS in names else names[0]


def _expected(golden: Golden, index: int, bundle: Bundle) -> Any:
    return golden.answers([index])[_main_output(bundle)]


def _decibels(noise: Noise) -> float:
    """Centred where several images allow it, as in the limits."""
    found = noise.sqnr_centred_db
    return found if found is not None else noise.sqnr_db or 0.0


def _check_pair(candidate: Bundle, reference: Bundle) -> None:
    ours, theirs = candidate.manifest, reference.manifest
    if theirs.precision != "fp32":
        raise UsageError(
            f"{reference.path}: localizing needs the float32 graph of the model, this is "
            f"{theirs.precision}; export one with --precision fp32 and give it as --against"
        )
    if ours.architecture is None or theirs.architecture is None:
        raise BundleError(
            f"{candidate.path}: a graph of another exporter, whose steps have other names"
        )
    if ours.architecture != theirs.architecture or ours.preprocessing != theirs.preprocessing:
        raise UsageError(
            f"{reference.path} ({theirs.variant}) is not the model of {candidate.path} "
            f"({ours.variant}): other shape or preprocessing"
        )


def _depth(bundle: Bundle) -> int:
    architecture = bundle.manifest.architecture
    return 0 if architecture is None else architecture.depth


def _ceiling_db(bundle: Bundle) -> float:
    """Where the noise of a sound graph of this precision begins."""
    bounds = limit_for(bundle.manifest.precision).logits.as_dict()
    return bounds.get("sqnr_centred_db", _EXACT_DB) + _SOUND_DB


def _before(step: Step, steps: Sequence[Step], ceiling_db: float) -> float:
    """The SQNR of what goes into a step: the worst of its inputs."""
    known = {other.tap.tensor: other.sqnr_db for other in steps}
    inputs = [known[name] for name in step.tap.inputs if name in known]
    return min([*inputs, ceiling_db])


def _largest_fall(steps: Sequence[Step], ceiling_db: float) -> Step | None:
    """The first of the steps with the largest fall; None where none falls by FALL_DB."""
    falls = [_before(step, steps, ceiling_db) - step.sqnr_db for step in steps]
    worst = int(np.argmax(falls))
    return steps[worst] if falls[worst] >= FALL_DB else None


def _sentence(step: Step, before_db: float) -> str:
    said = f"{step.tap.place}: SQNR falls from {before_db:.0f} dB to {step.sqnr_db:.0f} dB"
    return said + (f"; its input reaches {step.largest_input:.3g}" if step.largest_input else "")


def _spread_out(steps: Sequence[Step]) -> str:
    return (
        f"no single place: from {steps[0].tap.place} to {steps[-1].tap.place} SQNR goes from "
        f"{steps[0].sqnr_db:.0f} dB to {steps[-1].sqnr_db:.0f} dB, and nowhere by {FALL_DB:g} dB"
    )


@contextlib.contextmanager
def _scratch() -> Iterator[Path]:
    """A folder for bundles that no one will ask for again, nor our record of what was checked."""
    with tempfile.TemporaryDirectory(prefix="vit_edge-taps-") as name:
        try:
            yield Path(name)
        finally:
            for manifest in Path(name).rglob(MANIFEST_NAME):
                trust.forget(manifest.parent)


def _folder(parent: Path, name: str) -> Path:
    path = parent / name
    path.mkdir(parents=True)
    return path
