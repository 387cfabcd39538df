"""What cpu.py needs, made once below its --work: environments, bundles, the competitors' models."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vit_edge.backends import ort
from vit_edge.bundle import Bundle
from vit_edge.bundle.golden import Golden
from vit_edge.images.preprocess import pixels_from_resized
from vit_edge.variants import variant

REPOSITORY = Path(__file__).resolve().parents[1]
PEERS = Path(__file__).with_name("peers")
# Few images, and random: enough for timing. Fidelity is then a floor of what photos would give.
CALIBRATION = ("--calibration", "random", "--calibration-images", "16")
INT8 = (*CALIBRATION, "--set", "sensitivity_images=2")
EXPORT = ("-m", "vit_edge.export")


class Pythons(NamedTuple):
    """Which environment runs whom."""

    here: Path
    peers: Path  # onnxruntime, openvino, nncf
    timm: Path


class Setup(NamedTuple):
    """Where everything is."""

    variant: str
    pythons: Pythons
    fp32: Path  # bundles
    bf16: Path
    int8: Path
    peers: Path  # the folder of peers/cpu_models.py

    @property
    def timm_name(self) -> str:
        """The model as timm calls it."""
        name = variant(self.variant).timm
        if name is None:
            raise SystemExit(f"timm has no {self.variant}; see --list-variants of vit_edge.export")
        return name


def prepare(work: Path, name: str, peers: Path | None, timm: Path | None) -> Setup:
    """Make what is not there yet; progress on stderr.

    Args:
        work: A folder for everything; several GB.
        name: The variant.
        peers: Python of an environment that has the competitors; made if None.
        timm: The same with timm; by default `peers`.
    """
    work.mkdir(parents=True, exist_ok=True)
    peers = peers or environment(work.resolve() / "venv")
    pythons = Pythons(Path(sys.executable), peers, timm or peers)
    where = work.resolve() / name
    fp32, bf16, int8 = (Path(f"{where}-{precision}") for precision in ("fp32", "bf16", "int8"))
    setup = Setup(name, pythons, fp32, bf16, int8, where)
    exported(fp32, name, "--precision", "fp32")
    exported(bf16, name, "--precision", "bf16")
    exported(int8, name, "--precision", "int8", *INT8)
    for bundle in (Bundle.read(fp32), Bundle.read(int8)):
        if ort.find(bundle).path is None:
            ort.build(bundle)
    where.mkdir(exist_ok=True)
    inputs(setup)
    script = PEERS / "cpu_models.py"
    run(pythons.timm, script, "export", where, setup.timm_name)
    run(pythons.peers, script, "quantize", where)
    return setup


def environment(folder: Path, requirements: str = "requirements-cpu.txt") -> Path:
    """A competitors' environment, made unless pip has finished there with the same pins before."""
    python, done, pins = folder / "bin" / "python", folder / "installed", PEERS / requirements
    wanted = pins.read_text(encoding="utf-8")
    if not done.exists() or done.read_text(encoding="utf-8") != wanted:
        done.unlink(missing_ok=True)  # until pip has finished it is neither of the two
        run(Path(sys.executable), "-m", "venv", folder)
        run(python, "-m", "pip", "install", "-r", pins)
        done.write_text(wanted, encoding="utf-8")
    return python


def exported(path: Path, name: str, *options: str, command: Sequence[str] = EXPORT) -> None:
    """Export a bundle with seeded weights."""
    if not path.exists():
        fixed = ("--variant", name, "--checkpoint", "seeded:0", "--out", path)
        run(Path(sys.executable), *command, *fixed, *options)


def inputs(setup: Setup) -> None:
    """Write the pixels of the golden images, and the weights, for those who read no bundles."""
    from safetensors.torch import save_file

    from vit_edge.checkpoints import Request, load_checkpoint

    bundle = Bundle.read(setup.fp32)
    with Golden(bundle.golden_path) as golden:
        images = golden.images(range(len(golden)))
    np.save(setup.peers / "pixels.npy", pixels_from_resized(images, bundle.manifest.preprocessing))
    weights = setup.peers / "weights.safetensors"
    if not weights.exists():
        checkpoint = load_checkpoint("seeded:0", Request(variant(setup.variant)))
        save_file({key: t.contiguous() for key, t in checkpoint.weights.items()}, weights)


def child_environment() -> dict[str, str]:
    """Ours, with this checkout importable in the competitors' environments."""
    return {**os.environ, "PYTHONPATH": str(REPOSITORY)}


def run(python: Path, *arguments: str | Path) -> None:
    """Run Python to its end; what it prints goes to stderr."""
    argv = [str(part) for part in (python, *arguments)]
    subprocess.run(argv, check=True, stdout=sys.stderr, env=child_environment())
