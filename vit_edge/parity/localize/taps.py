"""Where a graph of ours can be looked into, and how far two graphs lie apart there.

Names are those that export gives. What recipes scale and shift on purpose, since the next product
takes it back (normalised tokens, queries, keys and values), is compared up to that.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np

from vit_edge.bundle import Bundle
from vit_edge.bundle.bundle import MODEL_NAME, write_manifest
from vit_edge.bundle.manifest import TensorSpec
from vit_edge.errors import BundleError
from vit_edge.onnxfile.edit import tap_name, tensor_names, with_outputs
from vit_edge.parity.statistics import Doubles, Floats, decibels


@dataclass(frozen=True)
class Tap:
    """A tensor [N, tokens, width] that the graphs of all precisions compute."""

    tensor: str
    place: str  # in words
    inputs: tuple[str, ...] = ()  # the taps that it is computed from
    scaled: bool = False  # compared up to a factor and an offset per channel
    width: Literal["width", "qkv", "mlp"] = "width"
    block: int = -1  # whose step it is, after its attention has gathered all tokens
    depth: int = 0  # how many blocks have merged their tokens there

    @property
    def output(self) -> str:
        """What the output is called that shows it."""
        return tap_name(self.tensor)


def boundaries(depth: int) -> list[Tap]:
    """What enters the first block, and what leaves each."""
    taps = [Tap("embedding/Add:0", "the patch embedding")]
    for block in range(depth):
        before = (taps[-1].tensor,)
        end, words = f"blocks.{block}/Add_1:0", f"block {block}"
        taps.append(Tap(end, words, before, block=block, depth=block + 1))
    return taps


def inside(block: int) -> list[Tap]:
    """The steps of one block, in the order of computation."""
    name, words = f"blocks.{block}", f"block {block}"
    before = "embedding/Add:0" if block == 0 else f"blocks.{block - 1}/Add_1:0"
    norm1, norm2 = (f"{name}.norm{i}/LayerNormalization:0" for i in (1, 2))
    qkv, out = (f"{name}.attention.{part}/Add:0" for part in ("qkv", "out"))
    middle, end = f"{name}/Add:0", f"{name}/Add_1:0"
    fc1, fc2 = (f"{name}.mlp.{part}/Add:0" for part in ("fc1", "fc2"))
    gelu = f"{name}.mlp/Gelu:0"
    entering = partial(Tap, depth=block)
    after = partial(Tap, block=block, depth=block + 1)
    return [
        entering(before, f"what enters {words}"),
        entering(norm1, f"{words}, norm1", (before,), scaled=True),
        entering(qkv, f"{words}, qkv", (norm1,), scaled=True, width="qkv"),
        entering(out, f"{words}, attention", (qkv,), block=block),
        entering(middle, f"{words}, the sum after attention", (before, out), block=block),
        after(norm2, f"{words}, norm2", (middle,), scaled=True),
        after(fc1, f"{words}, fc1", (norm2,), width="mlp"),
        after(gelu, f"{words}, GELU", (fc1,), width="mlp"),
        after(fc2, f"{words}, fc2", (gelu,)),
        after(end, f"{words}, the sum after the MLP", (middle, fc2)),
    ]


def present(taps: Iterable[Tap], *bundles: Bundle) -> list[Tap]:
    """Those that all graphs compute; a gap is bridged: what followed it follows what led to it.

    The last block has no qkv where only the class token leaves it.
    """
    known = set.intersection(*(set(tensor_names(bundle.model_path)) for bundle in bundles))
    bridged: dict[str, tuple[str, ...]] = {}
    kept = []
    for tap in taps:
        inputs = tuple(n for name in tap.inputs for n in bridged.get(name, (name,)))
        if tap.tensor in known:
            kept.append(dataclasses.replace(tap, inputs=inputs))
        else:
            bridged[tap.tensor] = inputs
    return kept


def tapped(bundle: Bundle, taps: Sequence[Tap], folder: Path) -> Bundle:
    """A bundle whose graph answers with these tensors too.

    Args:
        bundle: The original; its files are copied.
        taps: What to show.
        folder: An empty folder, for the new bundle.
    """
    names = set(tensor_names(bundle.model_path))
    shapes = {tap.tensor: _shape(tap, bundle, names) for tap in taps}
    specs = [TensorSpec(t.output, "float32", "NLC", (None, *shapes[t.tensor])) for t in taps]
    content = with_outputs(bundle.model_path, {n: ("batch", *s) for n, s in shapes.items()})
    outputs = (*bundle.manifest.outputs, *specs)
    manifest = dataclasses.replace(bundle.manifest, outputs=outputs)
    return edited(dataclasses.replace(bundle, manifest=manifest), content, folder)


def _shape(tap: Tap, bundle: Bundle, names: set[str]) -> tuple[int, int]:
    """Tokens and width of a tap.

    Raises:
        BundleError: A graph of another exporter.
    """
    shape = bundle.manifest.architecture
    if shape is None:
        raise BundleError(f"{bundle.path}: a graph of another exporter, whose steps have no names")
    widths = {"width": shape.width, "qkv": 3 * shape.width, "mlp": shape.mlp_dim}
    # where a query of its own is computed, the class token alone leaves the block
    alone = f"blocks.{tap.block}.attention.q/Add:0" in names
    return 1 if alone else shape.block_tokens[tap.depth], widths[tap.width]


def edited(bundle: Bundle, model: bytes, folder: Path) -> Bundle:
    """A bundle with another graph.

    Args:
        bundle: Where the other files are; its manifest is taken as it is.
        model: The new model.onnx.
        folder: An empty folder, for the new bundle.
    """
    for name in bundle.manifest.files:
        # not linked: that would change when the original changed last, by which it is known
        if name != MODEL_NAME:
            shutil.copyfile(bundle.path / name, folder / name)
    (folder / MODEL_NAME).write_bytes(model)
    write_manifest(folder, bundle.manifest)
    return Bundle.read(folder)


class Apart:
    """How far a candidate's tensor lies from the reference's, channel by channel.

    Noise is measured against how much its channel varies from token to token. Few channels are a
    thousand times as large as the others (massive activations, arXiv:2402.17762); so they hide
    nothing.
    """

    def __init__(self, *, scaled: bool) -> None:
        """Begin; `scaled`: a factor and an offset per channel do not count."""
        self._scaled = scaled
        self._candidate: list[Doubles] = []
        self._expected: list[Doubles] = []

    def add(self, candidate: Floats, expected: Floats) -> None:
        """Add the tokens of an image: float[..., width] each."""
        width = expected.shape[-1]
        self._candidate.append(candidate.reshape(-1, width).astype(np.float64))
        self._expected.append(expected.reshape(-1, width).astype(np.float64))

    def sqnr_db(self) -> float:
        """Signal-to-noise ratio in dB, averaged over the channels that vary at all."""
        candidate, expected = np.concatenate(self._candidate), np.concatenate(self._expected)
        if not np.isfinite(candidate).all():
            return decibels(0.0, 1.0)
        if self._scaled:
            candidate, expected = (
                candidate - candidate.mean(axis=0),
                expected - expected.mean(axis=0),
            )
            power = np.square(candidate).sum(axis=0)
            factor = (candidate * expected).sum(axis=0) / np.where(power > 0, power, 1.0)
            candidate = candidate * factor
        noise = np.square(candidate - expected).mean(axis=0)
        varying = expected.var(axis=0)
        counts = varying > 0
        if not counts.any():
            return decibels(float(np.square(expected).sum()), float(noise.sum()))
        return decibels(1.0, float((noise[counts] / varying[counts]).mean()))

    def largest(self) -> float:
        """The reference's largest |value|."""
        return max((float(np.abs(part).max()) for part in self._expected), default=0.0)
