"""Engines of ONNX Runtime: the optimized graph with packed weights, ready to be mapped."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vit_edge.backends import Option
from vit_edge.backends._options import build_names, takes
from vit_edge.backends.ort.options import PROVIDERS, BuildOptions, LoadOptions
from vit_edge.backends.ort.session import SIMULATED, open_session, session_options
from vit_edge.backends.ort.version import (
    COMPARES_PACKED,
    WEIGHT_ONLY,
    check_runnable,
    installed_version,
    release,
)
from vit_edge.bundle import Bundle, engines, integrity
from vit_edge.bundle.bundle import MODEL_NAME
from vit_edge.bundle.engines import Found
from vit_edge.errors import BackendError, ModelError, UsageError
from vit_edge.machine.paths import path_for

_LOG = logging.getLogger(__name__)

WEIGHTS_NAME = "model.onnx.data"
FILES = (MODEL_NAME, WEIGHTS_NAME)


BUILD_OPTIONS = build_names(BuildOptions)


@takes(BuildOptions)
def key(bundle: Bundle, options: BuildOptions) -> str:
    """Return what packed weights depend on: the model, the runtime, the CPU and its features."""
    return engines.key_of(_key_parts(bundle, options))


def configurations(bundle: Bundle) -> Sequence[Mapping[str, Option]]:
    """List the options worth trying here: see `LoadOptions` for what each is good for."""
    precision = bundle.manifest.precision
    worth: list[Mapping[str, Option]] = []
    if precision not in ("bf16", *SIMULATED):
        worth = [{}, {"micro_batch": 1}, {"micro_batch": 1, "arena": False}]
    from vit_edge.machine.cuda import gpus

    if not gpus().found:
        return worth
    import onnxruntime

    present = onnxruntime.get_available_providers()
    if PROVIDERS["cuda"] in present and precision not in ("int8", *SIMULATED):  # not multiplied
        worth += [{"provider": "cuda"}, {"provider": "cuda", "cuda_graph": True}]
    return worth


@takes(BuildOptions)
def find(bundle: Bundle, options: BuildOptions) -> Found:
    """The engine that `build` made of this bundle here with the same options, or why there is none.

    The CUDA provider has none: what it opens is the bundle, which is returned.
    """
    options.check()
    return Found(bundle.path, "") if options.provider == "cuda" else find_packed(bundle, options)


def find_packed(bundle: Bundle, options: BuildOptions) -> Found:
    """The packed weights that a session with these options opens, or why there are none."""
    if options.provider == "cuda":
        return Found(None, "the CUDA provider runs model.onnx as it is")
    parts = _key_parts(bundle, options)
    return engines.find(bundle, "ort", parts, FILES, options.engines_dir)


@takes(BuildOptions)
def build(bundle: Bundle, options: BuildOptions) -> Path:
    """Write the optimized graph with prepacked weights for the CPU, ready to be mapped.

    Args:
        bundle: The bundle.
        options: See `BuildOptions`; `load` must be given the same.

    Returns:
        The engine's directory. It is made aside and moved into place: there is never half of one.

    Raises:
        BackendError: ONNX Runtime refuses the model, or would rebuild float weights at every run.
        ResourceError: No place to write to.
        UsageError: The CUDA provider compiles nothing.
    """
    options.check()
    if options.provider == "cuda":
        raise UsageError("the CUDA provider runs model.onnx as it is: there is nothing to build")
    use = LoadOptions(accuracy_level=options.accuracy_level)
    check_runnable(bundle, "cpu")
    integrity.ensure_verified(bundle, full=True)
    disk_bytes = 3 * bundle.model_bytes  # weights as they are and packed, then packed alone
    key = _key_parts(bundle, options)
    with engines.stage_engine(bundle, "ort", key, FILES, options.engines_dir, disk_bytes) as stage:
        prepack = _can_map(bundle, use)
        _optimize(bundle, use, bundle.model_path, stage.path, prepack=prepack)
        if bundle.manifest.precision in WEIGHT_ONLY:
            _check_fusion(bundle.model_path, stage.path / MODEL_NAME)
        if prepack:
            _compact(bundle, use, stage.path)
    return stage.target


def _can_map(bundle: Bundle, use: LoadOptions) -> bool:
    """True where the runtime computes with packed weights that are mapped from the disk.

    MatMulNBits at level 4 does not: it writes scales into them when they are loaded, and crashes,
    or answers something else. There the weights are packed at each load.
    """
    return bundle.manifest.precision not in WEIGHT_ONLY or use.accuracy_level == 0


def _key_parts(bundle: Bundle, options: BuildOptions) -> dict[str, str]:
    weight_only = bundle.manifest.precision in WEIGHT_ONLY
    own = {"accuracy_level": str(options.accuracy_level)} if weight_only else {}
    return own | {"runtime": f"onnxruntime {installed_version()}"} | engines.machine_parts(bundle)


def _optimize(
    bundle: Bundle, use: LoadOptions, model: Path, folder: Path, *, prepack: bool
) -> None:
    """Have the runtime optimize a model, and write what comes out to a folder."""
    import onnxruntime

    entries = {
        "session.save_external_prepacked_constant_initializers": "1" if prepack else "0",
        "session.optimized_model_external_initializers_file_name": WEIGHTS_NAME,
        "session.optimized_model_external_initializers_min_size_in_bytes": "1024",
    }
    precision = bundle.manifest.precision
    ours = model == bundle.model_path
    options = session_options(onnxruntime, use, precision, optimize=ours)
    for key, value in entries.items():
        options.add_session_config_entry(key, value)
    options.optimized_model_filepath = path_for("onnxruntime", folder / MODEL_NAME)
    open_session(onnxruntime, model, options, "cpu")


def _compact(bundle: Bundle, use: LoadOptions, stage: Path) -> None:
    """Leave packed weights out in their other form, if the answers then are the same to the bit.

    How: see packed.py. It rests on how the runtime looks packed weights up, so it is tried.
    """
    import tempfile

    from vit_edge.backends.ort import packed  # who opens an engine packs nothing

    model, data = stage / MODEL_NAME, stage / WEIGHTS_NAME
    with tempfile.TemporaryDirectory(dir=stage) as name:
        scratch = Path(name)
        _link(data, scratch / WEIGHTS_NAME)
        try:
            external = packed.external_data(model)
            stand_ins = packed.with_stand_ins(external, scratch / "stand-ins")
            (scratch / MODEL_NAME).write_bytes(packed.with_external_data(model, stand_ins))
            keyed = scratch / "keyed"
            keyed.mkdir()
            _optimize(bundle, use, scratch / MODEL_NAME, keyed, prepack=True)
            keys = packed.external_data(keyed / MODEL_NAME)
            small = scratch / "small"
            small.mkdir()
            changed = packed.compacted(external, keys, data, small / WEIGHTS_NAME)
            (small / MODEL_NAME).write_bytes(packed.with_external_data(model, changed))
            same = _answers(bundle, use, model) == _answers(bundle, use, small / MODEL_NAME)
        except (ModelError, BackendError) as error:
            _say_twice(f"it refuses weights that stand in for packed ones ({error})")
            return
        if not same:
            _say_twice("it looks packed weights up in another way than known")
            return
        for file in FILES:
            (small / file).replace(stage / file)


def _say_twice(reason: str) -> None:
    """Say what an engine costs that could not be made smaller, and what it does not."""
    version = installed_version()
    if release(version) >= COMPARES_PACKED:
        reason = "from 1.32 on it compares packed weights with the unpacked ones at every start"
    _LOG.warning(
        "the engine holds its weights twice on the disk, packed and unpacked, for onnxruntime %s: "
        "%s. In memory they are once, and answers and speed are the same. onnxruntime 1.31 needs "
        "half the disk",
        version,
        reason,
    )


def _link(file: Path, place: Path) -> None:
    """The same file in another folder; not by a symlink, which onnxruntime 1.24 refuses."""
    try:
        os.link(file, place)
    except OSError:  # a file system without hard links
        import shutil  # who opens an engine copies nothing

        shutil.copyfile(file, place)


def _answers(bundle: Bundle, use: LoadOptions, model: Path) -> Mapping[str, bytes]:
    """Return an optimized model's answers to two images of noise, to the bit."""
    import onnxruntime

    precision = bundle.manifest.precision
    options = session_options(onnxruntime, use, precision, optimize=False)
    session = open_session(onnxruntime, model, options, "cpu")
    tensor, random = bundle.manifest.input, np.random.default_rng(0)
    shape = (2, *(size for size in tensor.shape[1:] if size is not None))
    pixels: NDArray[np.generic] = random.standard_normal(shape, np.float32)
    if tensor.dtype == "uint8":
        pixels = random.integers(0, 256, shape, np.uint8)
    names = [tensor.name for tensor in bundle.manifest.outputs]
    answers = session.run(names, {tensor.name: pixels})
    return {name: answer.tobytes() for name, answer in zip(names, answers, strict=True)}


def _check_fusion(path: Path, optimized: Path) -> None:
    """Refuse a graph some of whose weights are expanded to float32 at every run.

    Raises:
        BackendError: Fewer MatMulNBits than the weight-only model has blocks of weights.
    """
    expected = _count(path, "", "DequantizeLinear")
    left = _count(optimized, "", "DequantizeLinear")
    fused = _count(optimized, "com.microsoft", "MatMulNBits")
    if left or fused != expected:
        raise BackendError(
            f"{path}: onnxruntime {installed_version()} fused {fused} of {expected} "
            f"DequantizeLinear into MatMulNBits and left {left}, which it would expand to float32 "
            "at every run: use another onnxruntime (1.31.1 is known to fuse them) or export "
            "another precision"
        )


def _count(path: Path, domain: str, operator: str) -> int:
    from vit_edge import onnxfile

    return onnxfile.read_model(path).operators.get(domain, Counter())[operator]
