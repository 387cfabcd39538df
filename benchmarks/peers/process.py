"""One process of a competitor: its model is made once, then opened, asked, warmed up and timed.

    python SCRIPT.py make SETUP FOLDER           write what it opens, next to what is in FOLDER
    python SCRIPT.py measure SETUP FOLDER JSON   time it; JSON: batch, threads, samples, seconds

FOLDER holds what ../competitors.py writes: model.json (see Model), weights.safetensors and
pixels.npy. `measure` prints one line of JSON: what vit_edge.bench.run.session.measure returns, with
model_bytes, the size of what was opened, in place of the parity; with "answers" in the request it
writes the logits of all pixels there.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeAlias

Run: TypeAlias = Callable[[], Any]  # one query; its answer as the runtime gives it
Make: TypeAlias = Callable[[Path], None]
PIXELS, WEIGHTS, MODEL = "pixels.npy", "weights.safetensors", "model.json"


@dataclass(frozen=True)
class Model:
    """The ViT that all run."""

    variant: str
    timm: str | None  # timm's name
    width: int
    depth: int
    heads: int
    mlp_dim: int
    patch_px: int
    image_px: int
    num_classes: int
    layer_norm_eps: float

    @classmethod
    def read(cls, folder: Path) -> Model:
        """Read model.json."""
        return cls(**json.loads((folder / MODEL).read_text(encoding="utf-8")))


@dataclass(frozen=True)
class Opened:
    """A model that is ready.

    Attributes:
        facts: What runs: runtime with its version, and what it was told.
        prepare: From pixels, float32[N, 3, H, W], to what one query does.
        logits: From its answer to float32[N, classes].
    """

    facts: Mapping[str, str]
    prepare: Callable[[Any], Run]
    logits: Callable[[Any], Any]


@dataclass(frozen=True)
class Setup:
    """How a tool is run.

    Attributes:
        imports: The packages it needs, imported before the clock of its load starts.
        open: From the folder and the number of threads.
        make: Writes what `open` reads, unless it is there.
        file: What `open` reads, for its size; None: the weights themselves.
    """

    imports: Sequence[str]
    open: Callable[[Path, int], Opened]
    make: Make | None = None
    file: str | None = None


def main(setups: Mapping[str, Setup]) -> int:
    """Do one step, as asked for on the command line."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print on standard output is not the answer
    step, name, folder = sys.argv[1], sys.argv[2], Path(sys.argv[3])
    if name not in setups:
        raise SystemExit(f"no setup {name!r}; there are: {', '.join(setups)}")
    setup = setups[name]
    if step == "make":
        if setup.make is not None:
            setup.make(folder)
    elif step == "measure":
        found = measured(setup, folder, json.loads(sys.argv[4]))
        answers.write(json.dumps(found) + "\n")
        answers.flush()
    else:
        raise SystemExit(__doc__)
    return 0


def measured(setup: Setup, folder: Path, request: Mapping[str, Any]) -> dict[str, Any]:
    """Open, answer, warm up, sample; then answer everything if asked to."""
    import numpy as np

    from vit_edge.bench.device import sensors
    from vit_edge.bench.run import scenarios
    from vit_edge.bench.run.session import memory_bytes

    for module in setup.imports:
        importlib.import_module(module)
    imported = time.monotonic()
    opened = setup.open(folder, request["threads"])
    loaded = time.monotonic()
    pixels, batch = np.load(folder / PIXELS), request["batch"]
    run = opened.prepare(np.ascontiguousarray(np.resize(pixels, (batch, *pixels.shape[1:]))))
    ready = time.monotonic()
    run()
    answered = time.monotonic()
    limits = scenarios.Limits(request["samples"], request["at_least_s"], request["most_s"])
    watch = sensors.Watch()
    found = scenarios.one_after_another(run, batch, limits, watch)
    memory = memory_bytes()
    if request.get("answers"):
        starts = range(0, len(pixels), batch)
        parts = [
            opened.logits(opened.prepare(_filled(pixels[at : at + batch], batch))())[
                : len(pixels) - at
            ]
            for at in starts
        ]
        np.save(request["answers"], np.concatenate(parts).astype(np.float32))
    return asdict(found) | {
        "latencies_ms": [round(latency, 4) for latency in found.latencies_ms],
        "cold_s": {
            "import": imported - request["spawned"],
            "load": loaded - imported,
            "first_answer": answered - ready,
        },
        "memory_bytes": memory,
        "sensors": watch.readings(found.images),
        "model_bytes": (folder / (setup.file or WEIGHTS)).stat().st_size,
        "facts": dict(opened.facts) | {"threads": str(request["threads"])},
    }


def _filled(pixels: Any, batch: int) -> Any:
    """The last batch too has as many images: some runtimes take no other number."""
    import numpy as np

    return np.ascontiguousarray(np.resize(pixels, (batch, *pixels.shape[1:])))


def onnxruntime_setup(file: str, make: Make) -> Setup:
    """One that makes an ONNX file and runs it in onnxruntime."""
    return Setup(
        ("onnxruntime",),
        lambda folder, threads: onnxruntime_session(folder / file, threads),
        make,
        file,
    )


def onnxruntime_session(path: Path, threads: int) -> Opened:
    """An ONNX file in onnxruntime's CPU provider, with its defaults."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(path), options, ["CPUExecutionProvider"])
    (given,) = session.get_inputs()
    facts = {
        "runtime": f"onnxruntime {onnxruntime.__version__}",
        "provider": "CPUExecutionProvider",
    }
    return Opened(
        facts,
        lambda pixels: lambda: session.run(None, {given.name: pixels}),
        lambda answer: answer[0],
    )


def feeds(folder: Path, name: str) -> Any:
    """What onnxruntime's quantize_static asks for images: one feed after the other, then None."""
    import numpy as np

    pixels = np.load(folder / PIXELS)

    class Feeds:
        def __init__(self) -> None:
            self._feeds = ({name: image[None]} for image in pixels)

        def get_next(self) -> dict[str, Any] | None:
            return next(self._feeds, None)

    return Feeds()
