"""Find the first place where a candidate leaves the reference: block first, then the step in it.

Both graphs get the same tensors as extra outputs and run one after the other, each in a child
process, on a few images; the reference's tensors wait on disk. Extra outputs undo fusions, so the
candidate's logits are compared with and without them: what vanishes then was a fusion's fault. At
last the suspected step is given the reference's values: if the logits recover, it is to blame.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vit_edge import backends
from vit_edge.backends import auto
from vit_edge.bundle import Bundle, trust
from vit_edge.bundle.bundle import MANIFEST_NAME
from vit_edge.bundle.golden import Golden, GoldenWriter
from vit_edge.errors import BundleError, UsageError
from vit_edge.images.preprocess import input_from_resized
from vit_edge.machine import child
from vit_edge.onnxfile.edit import with_values
from vit_edge.parity.compare import write_answers
from vit_edge.parity.limits import limit_of
from vit_edge.parity.localize.taps import Apart, Tap, boundaries, edited, inside, present, tapped
from vit_edge.parity.result import Block
from vit_edge.parity.statistics import Floats, Noise, rows
from vit_edge.parity.targets import LOGITS

_LOG = logging.getLogger(__name__)
_HERE = f"{__name__}:"  # of the functions that children run

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

    def blocks(self) -> tuple[Block, ...]:
        """What a result says of them."""
        return tuple(Block(s.tap.place, round(s.sqnr_db, 2)) for s in self.steps)


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
        golden: Images to look at; the first IMAGES are, in one batch: what leaks between them or
            is the same for all shows in no other way.
        memory_limit_bytes: Of each of the candidate's children; the reference has none.
        timeout_s: Of each child.

    Raises:
        UsageError: The bundles are not of one model.
        BundleError: A graph of another exporter, whose names are not ours.
        ResourceError: A child died.
    """
    check_pair(candidate, reference)
    search = _Search(candidate, reference, backend, golden, memory_limit_bytes, timeout_s)
    whole = search.steps(boundaries(_depth(candidate)))
    ceiling_db = _ceiling_db(candidate)
    worst = _largest_fall(whole, ceiling_db)
    if worst is None:
        return Localized(tuple(whole), search.elsewhere(whole))
    within: list[Step] = []
    if worst.tap.block >= 0:
        within = search.steps(inside(worst.tap.block))
        worst = _largest_fall(within, ceiling_db) or worst
    sentence = _sentence(worst, _before(worst, within or whole, ceiling_db))
    return Localized((*whole, *within), f"{sentence}; {search.cure(worst.tap)}")


class _Search:
    """Runs both graphs with taps, in children."""

    def __init__(
        self,
        candidate: Bundle,
        reference: Bundle,
        backend: str,
        golden: Path,
        memory_limit_bytes: int | None,
        timeout_s: float | None,
    ) -> None:
        self._candidate, self._reference, self._golden = candidate, reference, golden
        # A graph with taps has another hash: what was tuned is looked up by the original.
        choice = auto.Choice(backend, {})
        self._choice = auto.resolve(candidate, choice, images_of(candidate))
        self._ask_reference = partial(child.call_in_child, timeout_s=timeout_s)
        self._ask = partial(self._ask_reference, memory_limit_bytes=memory_limit_bytes)

    def steps(self, taps: Sequence[Tap]) -> list[Step]:
        """How far the candidate lies from the reference at each of them that both have.

        Raises:
            BundleError: They have none.
        """
        shown = present(taps, self._candidate, self._reference)
        if not shown:
            raise BundleError(f"{self._candidate.path}: its graph has none of the steps of a ViT")
        if self._candidate.manifest.precision == "fp32":  # nothing was scaled on purpose
            shown = [dataclasses.replace(tap, scaled=False) for tap in shown]
        _LOG.info("looking at %s to %s", shown[0].place, shown[-1].place)
        with self._showing(shown) as (scratch, ours):
            expected = self._expected(shown, scratch)
            numbers = self._ask(f"{_HERE}apart_here", ours.path, self._choice, expected, shown)
        return [Step(tap, *numbers[tap.tensor]) for tap in shown]

    def elsewhere(self, whole: Sequence[Step]) -> str:
        """What to say where no block falls: a fusion, what follows the blocks, or no place."""
        with self._showing([step.tap for step in whole]) as (_, ours):
            plain_db, fused = self._with_and_without(ours)
        last = whole[-1]
        if fused or plain_db >= min(last.sqnr_db, _ceiling_db(self._candidate)) - FALL_DB:
            return fused or _spread_out(whole)
        return (
            f"after {last.tap.place}, the final norm or the head: SQNR falls from "
            f"{last.sqnr_db:.0f} dB to {plain_db:.0f} dB"
        )

    def cure(self, tap: Tap) -> str:
        """What the logits are like as they are, with the tap, and with the reference's values."""
        _LOG.info("giving %s the reference's values", tap.place)
        with self._showing([tap]) as (scratch, ours):
            plain_db, fused = self._with_and_without(ours)
            if fused:
                return f"but {fused}"
            cured_db = self._ask(
                f"{_HERE}cured_here", self._candidate.path, self._choice, self._golden,
                self._expected([tap], scratch), tap, _folder(scratch, "cured"),
            )  # fmt: skip
        return (
            f"with the reference's values there the logits are at {cured_db:.0f} dB "
            f"instead of {plain_db:.0f} dB"
        )

    @contextlib.contextmanager
    def _showing(self, taps: Sequence[Tap]) -> Iterator[tuple[Path, Bundle]]:
        """A scratch folder, and in it the candidate with these tensors as outputs."""
        with _scratch() as scratch:
            yield scratch, tapped(self._candidate, taps, _folder(scratch, "candidate"))

    def _with_and_without(self, ours: Bundle) -> tuple[float, str]:
        """The logits' SQNR without taps in dB, and what to say if taps alone cure them."""
        plain_db, tapped_db = (
            self._ask(f"{_HERE}logits_here", bundle.path, self._choice, self._golden)
            for bundle in (self._candidate, ours)
        )
        return plain_db, _fused(plain_db, tapped_db) if tapped_db > plain_db + FALL_DB else ""

    def _expected(self, taps: Sequence[Tap], scratch: Path) -> Path:
        """The reference's values at these taps, as a golden file."""
        theirs = tapped(self._reference, taps, _folder(scratch, "reference"))
        expected = scratch / "expected.npz"
        count = images_of(self._candidate)
        self._ask_reference(f"{_HERE}show_here", theirs.path, self._golden, expected, taps, count)
        return expected


def images_of(bundle: Bundle) -> int:
    """How many images are looked at: one batch."""
    return min(IMAGES, bundle.manifest.max_batch)


def show_here(path: Path, golden_path: Path, target: Path, taps: Sequence[Tap], count: int) -> None:
    """Write the reference's tensors to a golden file, image by image; runs in a child."""
    bundle = Bundle.read(path)
    outputs = [tap.output for tap in taps]
    with Golden(golden_path) as golden:
        backend = backends.module(backends.AUTO).load(bundle)
        with GoldenWriter(
            target, probes=[], outputs=outputs, reference_dtype=bundle.manifest.precision
        ) as writer:
            images = min(count, len(golden))
            write_answers(writer, backend, golden, bundle.manifest, outputs, images)
        backend.close()


def apart_here(
    path: Path, choice: auto.Choice, expected: Path, taps: Sequence[Tap]
) -> dict[str, tuple[float, float]]:
    """How far the candidate's tensors lie from the reference's; runs in a child.

    Returns:
        Tensor -> SQNR in dB, and the largest |value| that goes into it.
    """
    bundle = Bundle.read(path)
    apart = {tap.tensor: Apart(scaled=tap.scaled) for tap in taps}
    with Golden(expected) as golden:
        ours = _answers(bundle, choice, golden)
        for index in range(len(golden)):
            answers = golden.answers([index])
            for tap in taps:
                apart[tap.tensor].add(ours[tap.output][index], answers[tap.output])
    largest = {tensor: numbers.largest() for tensor, numbers in apart.items()}
    return {
        tap.tensor: (
            apart[tap.tensor].sqnr_db(),
            max((largest[name] for name in tap.inputs if name in largest), default=0.0),
        )
        for tap in taps
    }


def logits_here(path: Path, choice: auto.Choice, golden_path: Path) -> float:
    """The SQNR of the logits of the first images, in dB; runs in a child."""
    bundle = Bundle.read(path)
    with Golden(golden_path) as golden:
        return _logits_db(bundle, golden, _answers(bundle, choice, golden))


def cured_here(
    path: Path,
    choice: auto.Choice,
    golden_path: Path,
    expected: Path,
    tap: Tap,
    folder: Path,
) -> float:
    """The same with the reference's values at a tap; runs in a child."""
    bundle = Bundle.read(path)
    with Golden(golden_path) as golden, Golden(expected) as given:
        values = given.answers(range(len(given)))[tap.output].astype(np.float32)
        content = with_values(bundle.model_path, {tap.tensor: values})
        cured = edited(bundle, content, _folder(folder, "bundle"))
        return _logits_db(bundle, golden, _answers(cured, choice, golden))


def _answers(bundle: Bundle, choice: auto.Choice, golden: Golden) -> Mapping[str, Floats]:
    """What a bundle answers to the first images, in one batch."""
    count = min(images_of(bundle), len(golden))
    backend = auto.open_choice(bundle, choice, None)
    answers = backend.run(input_from_resized(golden.images(range(count)), bundle.manifest))
    backend.close()
    return answers


def _logits_db(bundle: Bundle, golden: Golden, answers: Mapping[str, Floats]) -> float:
    """Centred where several images allow it, as in the limits; of features without a head."""
    names = [output.name for output in bundle.manifest.outputs]
    output = LOGITS if LOGITS in names else names[0]
    noise = Noise()
    noise.add(rows(answers[output]), rows(golden.answers(range(len(answers[output])))[output]))
    centred = noise.sqnr_centred_db
    return centred if centred is not None else noise.sqnr_db or 0.0


def check_pair(candidate: Bundle, reference: Bundle) -> None:
    """Refuse bundles whose steps cannot be compared.

    Raises:
        UsageError: The reference is not the float32 bundle of the same model.
        BundleError: The candidate is a graph of another exporter.
    """
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
    manifest = bundle.manifest
    bounds = limit_of(manifest).logits.as_dict()
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


def _fused(plain_db: float, tapped_db: float) -> str:
    return (
        f"looking there lifts the logits from {plain_db:.0f} dB to {tapped_db:.0f} dB: "
        "the fault is in what the runtime fuses, or in an engine of its own"
    )


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
