"""Models in memory: modules of transformers, timm and torchvision, read as their files would be.

A module's state_dict and configuration go through the same readers as a saved checkpoint; nothing
is written but the configuration. Afterwards the module itself is asked (see witness.py), since a
module may compute something else than its configuration says. It stays as it is.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vit_edge.bundle.manifest import Preprocessing
from vit_edge.checkpoints import Checkpoint, Request
from vit_edge.checkpoints.adapter import refuse_unmerged
from vit_edge.checkpoints.assemble import checkpoint_from, clean_name
from vit_edge.checkpoints.fields import Fields
from vit_edge.checkpoints.files import Place, Weights
from vit_edge.checkpoints.hf_preprocessing import preprocessing_of
from vit_edge.checkpoints.request import refuse_key, refuse_revision
from vit_edge.checkpoints.sources import hf, timm, torchvision
from vit_edge.checkpoints.tensors import LazyTensor
from vit_edge.checkpoints.timm_config import is_timm_config
from vit_edge.checkpoints.witness import check_answers
from vit_edge.checkpoints.wrappers import unwrap
from vit_edge.errors import CheckpointError, UsageError, VitEdgeError

log = logging.getLogger(__name__)

LIBRARIES = ("transformers", "timm", "torchvision")

# Wrappers that hold one model and change nothing -> the attribute that it is.
_WRAPPERS = {
    "DataParallel": "module",
    "DistributedDataParallel": "module",
    "OptimizedModule": "_orig_mod",  # of torch.compile
    "AveragedModel": "module",
}
_ADVICE = {
    "FullyShardedDataParallel": "its weights are spread over processes. Gather them with "
    "FSDP.state_dict_type(FULL_STATE_DICT), and load them into a plain module",
    "PeftModel": "its adapter is not merged. Give model.merge_and_unload()",
}
_FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
_ACTIVATIONS = {"GELUTanh": "gelu_tanh", "QuickGELU": "quick_gelu"}

PreprocessingAt = Callable[[tuple[int, int]], Preprocessing]


@dataclass(frozen=True)
class LiveModule:
    """A module in memory, and how images become pixels for it."""

    module: nn.Module
    processor: Path | None = None  # a preprocessor_config.json of transformers
    preprocessing: PreprocessingAt | None = None  # instead of it; None: as the module says


def load_live(live: LiveModule, request: Request) -> Checkpoint:
    """Read a module as its saved files would be read, and check that it answers alike.

    Args:
        live: The module. It is left as it is: mode, dtype and device.
        request: What else was asked.

    Returns:
        A copy of its weights in float32, with all that belongs to them.

    Raises:
        UsageError: A revision or a key, which a module does not have.
        CheckpointError: It is no plain Vision Transformer of a library that is known, its weights
            are not all here, or it computes something else than its configuration says.
    """
    refuse_revision(request.revision, "a module")
    refuse_key(request.key, "a module")
    module = bare_module(live.module)
    library, kind = _library(module)
    where = f"{kind} in memory"
    _refuse_quantized(module, where)
    stored = {name: _lazy(name, tensor, where) for name, tensor in _tensors(module, where).items()}
    weights = Weights(Path(where), unwrap(stored, where), ())
    read = partial(_READERS[library], module, kind, weights)
    checkpoint = asked = _with_epsilon(read(live, request), module, where)
    if request.image_hw is not None and asked.record.position_interpolation is not None:
        # At its own size, where nothing of ours is between the two.
        anyhow = LiveModule(module, preprocessing=lambda _: asked.preprocessing)
        checkpoint = read(anyhow, dataclasses.replace(request, image_hw=None))
    check_answers(module, checkpoint, where)
    digest = {"state_dict": _sha256(module)}
    record = dataclasses.replace(asked.record, sha256={**asked.record.sha256, **digest})
    return dataclasses.replace(asked, record=record)


def bare_module(module: nn.Module) -> nn.Module:
    """Take off the wrappers that change nothing.

    Raises:
        CheckpointError: A wrapper that does; the message says what to give instead.
    """
    names = [kind.__name__ for kind in type(module).__mro__]
    for name, advice in _ADVICE.items():
        if name in names or any(name in kind.__name__ for kind in map(type, module.modules())):
            raise CheckpointError(f"{type(module).__name__} in memory: {advice}")
    inside = next((attribute for name, attribute in _WRAPPERS.items() if name in names), None)
    if inside is None:
        return module
    log.info("%s: taking the module inside", type(module).__name__)
    return bare_module(getattr(module, inside))


def _library(module: nn.Module) -> tuple[str, str]:
    """Name the library that a module is of, and its class there."""
    for kind in type(module).__mro__:
        library = kind.__module__.partition(".")[0]
        if library in LIBRARIES:
            return library, kind.__name__
    raise CheckpointError(
        f"{type(module).__name__} in memory: no module of {', '.join(LIBRARIES)}. If one is inside "
        "it, give that. Otherwise save its state_dict and name the file; or write it with "
        "torch.onnx.export, and name the .onnx file with a processor"
    )


def _refuse_quantized(module: nn.Module, where: str) -> None:
    config = getattr(module, "config", None)
    if getattr(config, "quantization_config", None) is not None:
        raise CheckpointError(
            f"{where}: it is quantized. Give the model in float: load it without "
            "quantization_config; precision= lowers it, and proves that it keeps its answers"
        )


def _tensors(module: nn.Module, where: str) -> dict[str, Tensor]:
    """The state_dict.

    Raises:
        CheckpointError: Tensors that are not here, or not what they look like.
    """
    state: dict[str, Any] = module.state_dict()
    tensors = {name: value for name, value in state.items() if isinstance(value, Tensor)}
    refuse_unmerged(tensors, where)
    for name, tensor in tensors.items():
        if tensor.is_meta:
            raise CheckpointError(
                f"{where}: {name} is on the meta device: it has a shape and no values. Load the "
                "weights, without device_map to disk or init_empty_weights()"
            )
        if type(tensor) not in (Tensor, nn.Parameter):
            raise CheckpointError(
                f"{where}: {name} is a {type(tensor).__name__}, no plain tensor: quantized, or "
                "spread over processes. Give the model in float, on one device"
            )
    partial_names = [name for name in tensors if "parametrizations." in name]
    if partial_names:
        raise CheckpointError(
            f"{where}: {partial_names[0]} is a part of a parametrization. Make it plain with "
            "torch.nn.utils.parametrize.remove_parametrizations"
        )
    return tensors


def _lazy(name: str, tensor: Tensor, where: str) -> LazyTensor:
    def read() -> Tensor:
        if tensor.dtype not in _FLOATS:
            raise CheckpointError(f"{where}: {name} is {tensor.dtype}; weights must be floats")
        return tensor.detach().cpu()

    return LazyTensor(tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."), read)


def _sha256(module: nn.Module) -> str:
    """Hash the weights: names, dtypes, shapes and values, in the order of names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        if isinstance(tensor, Tensor):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            values = tensor.detach().cpu().contiguous().reshape(-1)
            digest.update(values.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _with_epsilon(checkpoint: Checkpoint, module: nn.Module, where: str) -> Checkpoint:
    """Take LayerNorm's epsilon off the module: what is in memory decides.

    Raises:
        CheckpointError: There are several.
    """
    found = {
        float(norm.eps): name
        for name, norm in module.named_modules()
        if "LayerNorm" in type(norm).__name__
        and isinstance(norm.eps, float)
        and not name.startswith("text_model.")
    }
    if len(found) > 1:
        listed = ", ".join(f"{eps:g} in {name}" for eps, name in sorted(found.items()))
        raise CheckpointError(f"{where}: LayerNorms of more than one epsilon: {listed}")
    epsilon = next(iter(found), checkpoint.architecture.layer_norm_eps)
    architecture = dataclasses.replace(checkpoint.architecture, layer_norm_eps=epsilon)
    return dataclasses.replace(checkpoint, architecture=architecture)


def _of_transformers(
    module: nn.Module, kind: str, weights: Weights, live: LiveModule, request: Request
) -> Checkpoint:
    """Write the configuration, and read it with the tensors in memory beside it."""
    config = json.loads(json.dumps(_config(module), default=str))
    config["architectures"] = [kind]
    if is_timm_config(config):  # TimmWrapper
        return _understood_by_timm(config, kind, weights, live, request)
    published = str(config.get("_name_or_path") or "")
    name = clean_name(Path(published).name) if published else kind
    with tempfile.TemporaryDirectory(prefix="vit_edge-live-") as scratch:
        folder = Path(scratch)
        (folder / hf.CONFIG).write_text(json.dumps(config), encoding="utf-8")
        if live.processor is not None:
            (folder / hf.PROCESSOR).write_bytes(live.processor.read_bytes())
        elif live.preprocessing is None:
            log.warning(
                "%s: nothing says how images become pixels; taken: the defaults of its image "
                "processor. Give processor=AutoImageProcessor.from_pretrained(...)",
                weights.path,
            )
        try:
            source = f"live:transformers.{kind}"
            checkpoint = hf.load_files(Place(folder, name), source, request, weights)
        except VitEdgeError as error:
            text = str(error).replace(str(folder / hf.CONFIG), f"{kind}.config")
            error.args = (text.replace(str(folder / hf.PROCESSOR), "processor"),)
            raise
    if live.preprocessing is not None:
        steps = live.preprocessing(checkpoint.architecture.image_hw)
        checkpoint = dataclasses.replace(checkpoint, preprocessing=steps)
    return checkpoint


def _config(module: nn.Module) -> dict[str, Any]:
    config: Any = getattr(module, "config", None)
    if not hasattr(config, "to_dict"):
        raise CheckpointError(f"{type(module).__name__} in memory: it has no config")
    table: dict[str, Any] = config.to_dict()
    return table


def _of_timm(
    module: nn.Module, kind: str, weights: Weights, live: LiveModule, request: Request
) -> Checkpoint:
    """Describe the module as timm's config.json would."""
    if kind not in ("VisionTransformer", "VisionTransformerDistilled"):
        raise CheckpointError(f"{weights.path}: timm's {kind} is no plain Vision Transformer")
    known: Any = module
    cfg = dict(getattr(known, "pretrained_cfg", None) or getattr(known, "default_cfg", None) or {})
    if not cfg.get("mean") and live.preprocessing is None and live.processor is None:
        raise CheckpointError(
            f"{weights.path}: it has no pretrained_cfg, so nothing says how images become pixels. "
            "Give processor=timm.data.resolve_model_data_config(model), or a name such as "
            "processor='timm-augreg'"
        )
    block, size = known.blocks[0], getattr(known.patch_embed, "img_size", None)
    activation = getattr(getattr(block, "mlp", None), "act", None)
    act = type(activation).__name__
    tanh = act == "GELU" and getattr(activation, "approximate", "none") == "tanh"
    called = "gelu_tanh" if tanh else _ACTIVATIONS.get(act, act.lower())
    identity = [isinstance(getattr(known, name, None), nn.Identity) for name in ("norm", "fc_norm")]
    config = {
        "architecture": str(cfg.get("architecture") or kind),
        "num_classes": getattr(known, "num_classes", None),
        "pretrained_cfg": cfg,
        "model_args": {
            **({} if activation is None else {"act_layer": called}),
            **({"num_heads": block.attn.num_heads} if hasattr(block, "attn") else {}),
            "global_pool": getattr(known, "global_pool", "token"),
            "final_norm": identity != [True, True],
            "dynamic_img_size": bool(getattr(known, "dynamic_img_size", False)),
            **({} if size is None else {"img_size": list(size)}),
        },
    }
    return _understood_by_timm(config, kind, weights, live, request)


def _understood_by_timm(
    config: dict[str, Any], kind: str, weights: Weights, live: LiveModule, request: Request
) -> Checkpoint:
    """Read a module with the reader of timm's checkpoints."""
    given = live.preprocessing is not None or live.processor is not None
    if given:  # what decides comes from elsewhere; the reader insists on some
        steps = {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "crop_pct": 1.0}
        config = {**config, "pretrained_cfg": {**(config.get("pretrained_cfg") or {}), **steps}}
    table = json.loads(json.dumps(config, default=str))
    name = str(config.get("architecture"))
    place = Place(weights.path, clean_name(name))
    fields = Fields(table, str(weights.path))
    foreign = timm.understand(fields, weights, place, f"live:timm.{kind}", request)
    if given:
        foreign = dataclasses.replace(
            foreign, preprocessing=_given(live, foreign.architecture.image_hw, request)
        )
    return checkpoint_from(foreign, request)


def _of_torchvision(
    module: nn.Module, kind: str, weights: Weights, live: LiveModule, request: Request
) -> Checkpoint:
    """Take the number of heads, which no tensor shows, off the module."""
    known: Any = module
    if kind != "VisionTransformer":
        raise CheckpointError(f"{weights.path}: torchvision's {kind} is no Vision Transformer")
    own_hw = (known.image_size, known.image_size)
    if live.preprocessing is None and live.processor is None:
        preprocessing = torchvision.preprocessing_of_scripts(str(weights.path))
    else:
        preprocessing = _given(live, own_hw, request)
    heads = known.encoder.layers[0].num_heads
    source = f"live:torchvision.{kind}"
    return checkpoint_from(
        torchvision.understand(weights, source, "torchvision-vit", request, preprocessing, heads),
        request,
    )


def _given(live: LiveModule, own_hw: tuple[int, int], request: Request) -> PreprocessingAt:
    """Return what the user gave as processor."""
    if live.preprocessing is not None:
        return live.preprocessing
    if live.processor is None:
        raise UsageError("no processor was given")
    return preprocessing_of(live.processor, own_hw, request.image_hw)


_READERS = {"transformers": _of_transformers, "timm": _of_timm, "torchvision": _of_torchvision}
