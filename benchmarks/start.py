"""From starting Python to the first answer: a bundle against PyTorch, and what was tried on it.

    python benchmarks/start.py BUNDLE [--rounds 15] [--cold] [--tried]

Each start is a fresh process that decodes a photo and answers it. They take turns. Beside the time
on the clock stands the time on the CPUs, which other work on the machine disturbs less. PyTorch
reads the same weights from a safetensors file, and sees the same pixels.

--cold drops the bundle, its engines and the weights from the page cache before each start, and of
the packages what no other process has mapped. --tried adds Predictor with one thing changed. Build
the bundle first (vit-edge build BUNDLE).
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import script
from timing import ratio

from vit_edge import cli
from vit_edge.backends import ort
from vit_edge.backends.ort.engine import WEIGHTS_NAME
from vit_edge.bench.report.cells import ms
from vit_edge.bundle import Bundle, engines
from vit_edge.errors import BackendError
from vit_edge.machine import cgroups

PACKAGES = ("numpy", "PIL", "onnxruntime", "torch")
PREDICTOR = "Predictor"

PREDICT = """
import sys
from vit_edge import Predictor
Predictor(sys.argv[1]).predict(sys.argv[2])
"""
# What was tried on Predictor: code in front of it, which finds what it needs in sys.argv[3].
ENTRIES = """
import json, sys
from vit_edge.backends import ort
plain = ort.session_options
def changed(*arguments, **named):
    options = plain(*arguments, **named)
    for key, value in json.loads(sys.argv[3]).items():
        options.add_session_config_entry(key, value)
    return options
ort.session_options = changed
"""
OTHER_FILE = """
import sys
from pathlib import Path
from vit_edge.backends import ort
plain = ort.open_session
ort.open_session = lambda runtime, path, *rest: plain(runtime, Path(sys.argv[3]), *rest)
"""
UNBUILT = """
from vit_edge.backends import ort
from vit_edge.bundle.engines import Found
ort.find_packed = lambda bundle, options: Found(None, "not asked for")
"""
AHEAD = """
import os, sys
engine = os.open(sys.argv[3], os.O_RDONLY)
os.posix_fadvise(engine, 0, 0, os.POSIX_FADV_WILLNEED)
"""
COLLECTING = "import vit_edge.predictor"  # not by the public name, which pauses the collector
CONVERT = """
import sys, onnxruntime
options = onnxruntime.SessionOptions()
options.optimized_model_filepath = sys.argv[2]
options.log_severity_level = 3
options.add_session_config_entry("session.save_model_format", "ORT")
onnxruntime.InferenceSession(sys.argv[1], options, ["CPUExecutionProvider"])
"""
TORCH = """
import sys, torch
from safetensors.torch import load_file
from vit_edge.bundle import Bundle
from vit_edge.images.preprocess import preprocess
from vit_edge.models.vit import vit_from_weights
bundle = Bundle.read(sys.argv[1])
model = vit_from_weights(bundle.manifest.architecture, load_file(sys.argv[3])).eval()
pixels = preprocess(sys.argv[2], bundle.manifest.preprocessing)
with torch.inference_mode():
    bundle.labels[int(model(torch.from_numpy(pixels[None])).logits.argmax())]
"""
# The end of a process, when its memory is given back, is no part of its start.
ANSWERED = "\nimport time; print(time.process_time(), flush=True)"
# onnxruntime_session_options_config_keys.h
SESSION = {
    "session.use_env_allocators": "1",
    "session.use_device_allocator_for_initializers": "1",
    "session.intra_op.allow_spinning": "0",
}


class Taken(NamedTuple):
    """What one start took."""

    wall_s: float
    cpu_s: float  # of all its threads, in the kernel too


def main(argv: list[str] | None = None) -> int:
    parser = script.parser(__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--cold", action="store_true", help="drop files from the page cache")
    parser.add_argument("--tried", action="store_true", help="other options of the session, too")
    return script.run(parser, run, argv)


def run(arguments: argparse.Namespace) -> int:
    bundle = Bundle.read(arguments.bundle)
    with tempfile.TemporaryDirectory() as scratch:
        weights = Path(scratch) / "weights.safetensors"
        save_weights(bundle, weights)
        codes = candidates(bundle, weights)
        if arguments.tried:
            codes = {**codes, **tried(bundle, Path(scratch))}
        forget = partial(drop_from_cache, bundle, Path(scratch)) if arguments.cold else None
        taken = turns(codes, arguments.rounds, forget)
    print(f"{script.machine()}; {bundle.path}; page cache {'cold' if arguments.cold else 'warm'}")
    baselines = ("PyTorch", "import torch", PREDICTOR)
    rows = [("", "ms", "least ms", "CPU ms", *(f"of {name}" for name in baselines))]
    for name, starts in taken.items():
        walls = [start.wall_s for start in starts]
        shares = [ratio(walls, [start.wall_s for start in taken[other]]) for other in baselines]
        cpu_s = sorted(start.cpu_s for start in starts)[len(starts) // 2]
        rows.append(
            (
                name, ms(1e3 * sorted(walls)[len(walls) // 2]), ms(1e3 * min(walls)),
                ms(1e3 * cpu_s),
                *(f"{share.value:.3f} ({share.low:.3f} to {share.high:.3f})" for share in shares),
            )
        )  # fmt: skip
    print(cli.table(rows))
    return 0


def save_weights(bundle: Bundle, file: Path) -> None:
    """Write the weights that the bundle was made of, as PyTorch's users keep them."""
    from safetensors.torch import save_file

    from vit_edge.checkpoints import Request, load_checkpoint
    from vit_edge.variants import variant

    manifest = bundle.manifest
    checkpoint = load_checkpoint(manifest.checkpoint.source, Request(variant(manifest.variant)))
    save_file({key: tensor.contiguous() for key, tensor in checkpoint.weights.items()}, file)


def candidates(bundle: Bundle, weights: Path) -> Mapping[str, Sequence[str]]:
    """Every start: its name, the code that Python is given, and its arguments."""
    least = "import numpy, PIL.Image, onnxruntime"
    return {
        "python": ("",),
        "import numpy": ("import numpy",),
        "import numpy, PIL, onnxruntime": (least,),
        "... and Predictor": (f"{least}; from vit_edge import Predictor",),
        PREDICTOR: (PREDICT, *asked(bundle)),
        "import torch": ("import torch",),
        "PyTorch": (TORCH, *asked(bundle), str(weights)),
    }


def asked(bundle: Bundle) -> tuple[str, str]:
    """The bundle and the photo."""
    return str(bundle.path.resolve()), str(script.PHOTO)


def tried(bundle: Bundle, scratch: Path) -> Mapping[str, Sequence[str]]:
    """Starts of Predictor that differ in one thing each."""
    ort_format = scratch / "model.ort"
    subprocess.run(
        [sys.executable, "-c", CONVERT, str(bundle.model_path), str(ort_format)], check=True
    )
    engine = ort.find(bundle).path
    if engine is None:
        raise BackendError(f"{bundle.path}: build it first: vit-edge build {bundle.path}")
    codes = {key: (ENTRIES, json.dumps({key: value})) for key, value in SESSION.items()}
    codes |= {
        "not built": (UNBUILT, ""),
        "ORT format": (OTHER_FILE, str(ort_format)),
        "engine read ahead": (AHEAD, str(engine / WEIGHTS_NAME)),
        "collector on": (COLLECTING, ""),
    }
    return {
        name: (code + PREDICT, *asked(bundle), argument) for name, (code, argument) in codes.items()
    }


def drop_from_cache(bundle: Bundle, scratch: Path) -> None:
    """Evict models and packages; what another process has mapped stays."""
    engines.evict(bundle, None)
    cgroups.evict(scratch)
    for name in PACKAGES:
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.origin is not None:
            package = Path(spec.origin).parent
            for folder in (package, package.with_name(f"{package.name}.libs")):
                cgroups.evict(folder)


def turns(
    starts: Mapping[str, Sequence[str]], rounds: int, forget: Callable[[], None] | None
) -> dict[str, list[Taken]]:
    """Start each in turn, `rounds` times around after one round that does not count."""
    taken: dict[str, list[Taken]] = {name: [] for name in starts}
    for turn in range(1 + rounds):
        for name, command in starts.items():
            if forget is not None:
                forget()
            took = started(*command)
            if turn:
                taken[name].append(took)
    return taken


def started(code: str, *arguments: str) -> Taken:
    """Run a fresh Python until it has answered."""
    argv = [sys.executable, "-c", code + ANSWERED, *arguments]
    begun = time.perf_counter()
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, env=environment()) as done:
        assert done.stdout is not None
        answered = done.stdout.readline()
        wall_s = time.perf_counter() - begun
    if done.returncode or not answered:
        raise BackendError(f"a start failed, exit code {done.returncode}; see above")
    return Taken(wall_s, float(answered))


def environment() -> dict[str, str]:
    """Ours, in which Python keeps what it compiled, as it does where a package is installed."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}


if __name__ == "__main__":
    sys.exit(main())
