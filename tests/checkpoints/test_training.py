"""What training loops save: the model among much else, read without running anything."""

from __future__ import annotations

import argparse
import collections
import datetime
import logging
import pathlib
import pickle
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.checkpoints.foreign import assert_same_weights, timm_tensors, weights_of
from tests.checkpoints.test_files import Canary
from tests.checkpoints.test_wrappers import prefixed
from vit_edge.checkpoints import Checkpoint, Request, load_checkpoint
from vit_edge.checkpoints.pickled import _harmless
from vit_edge.errors import CheckpointError
from vit_edge.variants import variant

requires = ("torch", "safetensors")

ROW = variant("testing")
WEIGHTS, AVERAGED = (weights_of(ROW.architecture, seed) for seed in (0, 1))
STATE, OTHER = timm_tensors(WEIGHTS), timm_tensors(AVERAGED)


def loaded(
    where: Path, content: object, name: str = "x.pth", key: str | None = None, **how: Any
) -> Checkpoint:
    torch.save(content, where / name, **how)
    return load_checkpoint(str(where / name), Request(ROW, key=key))


@pytest.mark.parametrize(
    "name",
    ["x.pth", "x.pt", "x.bin", "x.ckpt", "x.pkl", "x.pickle", "x.pth.tar", "last", "epoch.12"],
)
@pytest.mark.parametrize("legacy", [False, True])
def test_the_bytes_say_what_a_file_is_whatever_its_name(
    name: str, legacy: bool, tmp_path: Path
) -> None:
    found = loaded(tmp_path, STATE, name, _use_new_zipfile_serialization=not legacy)
    assert_same_weights(found, WEIGHTS)


@pytest.mark.parametrize("name", ["0a1b2c", "pytorch_model.bin"])
def test_safetensors_are_told_by_their_bytes_too(name: str, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file(STATE, tmp_path / name)
    assert_same_weights(load_checkpoint(str(tmp_path / name), Request(ROW)), WEIGHTS)


NESTS: list[Any] = [
    {"state_dict": STATE},
    {"model_state_dict": STATE, "optimizer_state_dict": {"state": {0: {"m": STATE["norm.bias"]}}}},
    {"weights": STATE},
    {"net": STATE, "acc": 91.5},
    {"model": {"state_dict": STATE}},
    {"state_dict": {"model": prefixed("module.", STATE)}},
    {"network_weights": STATE, "init_args": {"x": 1}},
    {"my own name": STATE},
    {"trainer": {"run": {"model": STATE}}},
    (STATE, {"lr": 0.1}),
    [{"epoch": 3}, STATE],
    STATE | {"epoch": 3, "arch": "vit"},
    {name: nn.Parameter(tensor) for name, tensor in STATE.items()},
    {name: tensor.numpy() for name, tensor in STATE.items()},
    {n: (t.t().contiguous().t() if t.ndim == 2 else t) for n, t in STATE.items()},
    collections.OrderedDict(STATE),
    {"state_dict": prefixed("model.", STATE) | {"criterion.weight": torch.ones(4)},
     "pytorch-lightning_version": "2.4.0", "callbacks": {}, "loops": {"a": 1}},
]  # fmt: skip


@pytest.mark.parametrize("content", NESTS, ids=lambda value: str(list(value)[:2])[:30])
def test_the_model_is_found_wherever_it_lies(content: object, tmp_path: Path) -> None:
    assert_same_weights(loaded(tmp_path, content), WEIGHTS)


BESIDE: list[Any] = [
    argparse.Namespace(lr=0.1, data=pathlib.PosixPath("/data"), device=torch.device("cpu")),
    types.SimpleNamespace(lr=0.1),
    np.float64(0.91),
    np.float32(0.9),
    np.int64(3),
    np.bool_(True),
    np.str_("best"),
    np.arange(3.0),
    np.array(["a", "b"]),
    np.random.default_rng(0).bit_generator.state,
    np.random.RandomState(0).get_state(),
    pathlib.PurePosixPath("a/b"),
    pathlib.PureWindowsPath("C:/a"),
    [Path("here")],
    collections.defaultdict(list, {"loss": [0.5]}),
    collections.defaultdict(float, {"a": 1.0}),
    collections.defaultdict(dict),
    collections.deque([1, 2], maxlen=3),
    collections.Counter("ab"),
    datetime.datetime(2026, 1, 2, tzinfo=datetime.timezone.utc).replace(tzinfo=None),
    datetime.timedelta(seconds=3),
    {1, 2},
    1 + 2j,
    torch.Size([1, 2]),
    torch.float16,
    torch.get_rng_state(),
]


@pytest.mark.parametrize("value", BESIDE, ids=lambda value: type(value).__name__)
@pytest.mark.parametrize("legacy", [False, True])
def test_data_beside_the_weights_is_harmless(value: object, legacy: bool, tmp_path: Path) -> None:
    content = {"state_dict": STATE, "extra": {"deep": [value]}}
    found = loaded(tmp_path, content, _use_new_zipfile_serialization=not legacy)
    assert_same_weights(found, WEIGHTS)


@pytest.mark.parametrize(
    ("module", "name", "base"),
    [
        ("numpy.core.multiarray", "scalar", None),  # as NumPy 1 writes it
        ("numpy._core.multiarray", "scalar", None),
        ("pathlib._local", "PosixPath", None),  # as Python 3.13 writes it
        ("pathlib", "WindowsPath", None),  # saved on Windows
        ("lightning.fabric.utilities.data", "AttributeDict", dict),
        ("pytorch_lightning.utilities.parsing", "AttributeDict", dict),
        ("yacs.config", "CfgNode", dict),
        ("easydict", "EasyDict", dict),
    ],
)
def test_what_other_versions_and_frameworks_write_is_read(
    module: str, name: str, base: type | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are not installed: a class of that name is there while the file is written alone."""
    arguments = (np.dtype("f8"), bytes(8)) if name == "scalar" else ("a", "b")
    if base is None:
        call: Any = types.new_class("call", (), {})
        call.__module__, call.__qualname__ = module, name
        value = type("Value", (), {"__reduce__": lambda self: (call, arguments)})()
    else:
        call = type(name, (base,), {"__module__": module})
        value = call(lr=0.1)
    for depth in range(module.count(".") + 1):
        part = ".".join(module.split(".")[: depth + 1])
        if part not in sys.modules:
            monkeypatch.setitem(sys.modules, part, types.ModuleType(part))
    monkeypatch.setattr(sys.modules[module], name, call, raising=False)
    content = {"state_dict": STATE, "hyper_parameters": value}
    torch.save(content, tmp_path / "x.ckpt")
    monkeypatch.undo()
    assert_same_weights(load_checkpoint(str(tmp_path / "x.ckpt"), Request(ROW)), WEIGHTS)


def test_what_is_let_through_is_data_and_only_while_reading(tmp_path: Path) -> None:
    loaded(tmp_path, {"state_dict": STATE, "best": np.float64(1)})
    after = torch.serialization.get_safe_globals()
    let_through = [item if isinstance(item, tuple) else (item, "") for item in _harmless()]
    for item, name in let_through:
        assert item not in after
        assert (item, name) not in after
        assert item not in (getattr, eval, exec, open, __import__, np.load, pickle.loads)
        assert not (isinstance(item, type) and issubclass(item, Path)), name
        assert not (isinstance(item, type) and issubclass(item, nn.Module)), name


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize(
    "wrap",
    [
        lambda canary: canary,
        lambda canary: argparse.Namespace(hidden=canary),
        lambda canary: types.SimpleNamespace(hidden=[canary]),
        lambda canary: np.array([canary], dtype=object),
        lambda canary: collections.defaultdict(list, {"a": canary}),
        lambda canary: collections.deque([canary]),
        lambda canary: {canary: 1},
    ],
)
def test_nothing_runs_from_within_what_is_let_through(
    wrap: Any, legacy: bool, tmp_path: Path
) -> None:
    canary = tmp_path / "canary"
    content = {"state_dict": STATE, "extra": wrap(Canary(canary))}
    with pytest.raises(CheckpointError, match="refused: .*Only tensors are loaded, never code"):
        loaded(tmp_path, content, _use_new_zipfile_serialization=not legacy)
    assert not canary.exists()


def test_an_array_of_objects_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="never code"):
        loaded(tmp_path, {"state_dict": STATE, "extra": np.array([{}], dtype=object)})


@pytest.mark.parametrize("legacy", [False, True])
def test_a_whole_pickled_model_is_answered_in_one_sentence(legacy: bool, tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    for content in (model, {"model": model, "epoch": 3}):
        with pytest.raises(CheckpointError) as caught:
            loaded(tmp_path, content, _use_new_zipfile_serialization=not legacy)
        message = str(caught.value).partition("refused: ")[2]
        assert message == (
            "a pickled module (torch.nn.modules.container.Sequential) runs code; save its "
            "state_dict: torch.save(model.state_dict(), FILE)"
        )


def test_an_unknown_class_beside_the_weights_is_named(tmp_path: Path) -> None:
    content = {"state_dict": STATE, "loss": nn.CrossEntropyLoss()}
    with pytest.raises(CheckpointError) as caught:
        loaded(tmp_path, content)
    assert "it holds objects of torch.nn.modules.loss.CrossEntropyLoss" in str(caught.value)
    assert "torch.save(model.state_dict(), FILE)" in str(caught.value)


@pytest.mark.parametrize(
    ("content", "key"),
    [
        ({"state_dict": STATE, "state_dict_ema": OTHER}, "state_dict_ema"),
        ({"model": STATE, "model_ema": prefixed("module.", OTHER)}, "model_ema"),
        ({"model": STATE, "ema": {"module": OTHER, "decay": 0.9}}, "ema"),
        ({"model": STATE, "ema": {"module": OTHER, "decay": 0.9}}, "ema.module"),
        ({"net": STATE, "ema_state_dict": OTHER}, "ema_state_dict"),
        ({"state_dict": STATE, "model": OTHER}, "model"),  # timm takes state_dict, too
        ({"model": STATE, "best_model": OTHER}, "best_model"),
        ({"teacher": STATE, "student": prefixed("module.backbone.", OTHER)}, "student"),
        ({"teacher": STATE, "student": prefixed("module.backbone.", OTHER)}, "student.backbone"),
        ({"state_dict": prefixed("a.teacher.", STATE) | prefixed("a.student.", OTHER)}, "student"),
        ({"state_dict": prefixed("net.", STATE) | prefixed("ema.", OTHER)}, "ema"),
    ],
)
def test_one_of_several_is_taken_as_training_tools_do_and_a_key_takes_the_other(
    content: object, key: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        assert_same_weights(loaded(tmp_path, content), WEIGHTS)
    assert f"{key.split('.')[0]}" in caplog.text
    assert_same_weights(loaded(tmp_path, content, key=key), AVERAGED)


@pytest.mark.parametrize("name", ["state_dict_ema", "model_ema", "ema", "ema_state_dict"])
def test_averaged_weights_alone_are_taken(name: str, tmp_path: Path) -> None:
    assert_same_weights(loaded(tmp_path, {name: OTHER, "epoch": 1}), AVERAGED)


def projection_head(prefix: str) -> dict[str, Tensor]:
    """What DINO trains with beside the backbone."""
    names = ("mlp.0.weight", "mlp.4.bias", "last_layer.weight_g", "last_layer.weight_v")
    return {f"{prefix}head.{name}": torch.ones(3) for name in names}


@pytest.mark.parametrize("key", [None, "teacher", "teacher.backbone"])
def test_a_checkpoint_of_dino_gives_its_teacher(
    key: str | None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    content = {
        "student": prefixed("module.backbone.", OTHER) | projection_head("module."),
        "teacher": prefixed("backbone.", STATE) | projection_head(""),
        "optimizer": {"state": {}},
        "epoch": 100,
        "args": argparse.Namespace(arch="vit_small", output_dir=Path("out")),
        "dino_loss": {"center": torch.zeros(1, 5)},
    }
    assert_same_weights(loaded(tmp_path, content, key=key), WEIGHTS)
    assert "left out: head.last_layer.weight_g" in caplog.text
    assert_same_weights(loaded(tmp_path, content, key="student"), AVERAGED)


def test_a_dictionary_that_holds_itself_is_read_once(tmp_path: Path) -> None:
    hostile: dict[str, Any] = {str(i): {} for i in range(200)}
    for name in hostile:
        hostile[name] = hostile
    assert_same_weights(loaded(tmp_path, hostile | {"state_dict": STATE}), WEIGHTS)
    hostile["model"] = hostile
    torch.save(hostile, tmp_path / "y.pth")
    with pytest.raises(CheckpointError, match="expected only named tensors"):
        load_checkpoint(f"timm:{tmp_path / 'y.pth'}", Request(ROW))


@pytest.mark.filterwarnings("ignore")
def test_a_torchscript_archive_is_named(tmp_path: Path) -> None:
    torch.jit.script(nn.Linear(2, 2)).save(str(tmp_path / "x.pt"))
    with pytest.raises(CheckpointError, match="a TorchScript archive holds code; save its"):
        load_checkpoint(str(tmp_path / "x.pt"), Request(ROW))


def test_two_models_of_equal_rank_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="--key first or --key second"):
        loaded(tmp_path, {"first": STATE, "second": OTHER})
    with pytest.raises(CheckpointError, match="--key first or --key second"):
        loaded(tmp_path, {"first": STATE, "second": OTHER}, key="third")
