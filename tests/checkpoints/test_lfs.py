"""Git LFS pointers: every kind of file says what it is and which command brings the real one."""

from __future__ import annotations

import re
from pathlib import Path

import onnx
import pytest
import torch
from onnx import TensorProto, helper

from tests.checkpoints.foreign import SMALL, weights_of, write_hf, write_timm
from tests.export.test_conventions import write
from vit_edge.bundle.bundle import Bundle
from vit_edge.checkpoints import Request, load_checkpoint
from vit_edge.errors import LFS_POINTER, BundleError, CheckpointError, ImageDecodeError, ModelError
from vit_edge.export.foreign.conventions import labels_for, preprocessing_for
from vit_edge.images.load import load_image
from vit_edge.onnxfile import check_external_data, read_model
from vit_edge.variants import variant

requires = ("torch", "safetensors", "onnx")

POINTER = (
    b"version https://git-lfs.github.com/spec/v1\n"
    b"oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 12345\n"
)
SAID = re.escape(LFS_POINTER)


@pytest.mark.parametrize("suffix", ["safetensors", "bin", "pt", "pth", "ckpt", "npz", "pkl", "x"])
@pytest.mark.parametrize("source", ["", "timm:", "hf:", "jax:", "torchvision:"])
def test_weights_that_are_a_pointer_say_so(source: str, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"model.{suffix}"
    path.write_bytes(POINTER)
    with pytest.raises(CheckpointError, match=SAID):
        load_checkpoint(f"{source}{path}", Request(variant("testing")))


@pytest.mark.parametrize("prefix", [True, False])
@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("hf", "config.json"),
        ("hf", "preprocessor_config.json"),
        ("hf", "model.safetensors"),
        ("timm", "config.json"),
        ("timm", "model.safetensors"),
    ],
)
def test_a_file_of_a_folder_that_is_a_pointer_says_so(
    source: str, name: str, prefix: bool, tmp_path: Path
) -> None:
    writer = {"hf": write_hf, "timm": write_timm}[source]
    folder = writer(tmp_path / "x", SMALL, weights_of(SMALL))
    (folder / name).write_bytes(POINTER)
    with pytest.raises(CheckpointError, match=f"{name}: {SAID}"):
        load_checkpoint(f"{source}:{folder}" if prefix else str(folder), Request())


@pytest.mark.parametrize("name", ["pytorch_model.bin.index.json", "pytorch_model-00001.bin"])
def test_a_shard_or_index_that_is_a_pointer_says_so(name: str, tmp_path: Path) -> None:
    folder = write_hf(tmp_path / "x", SMALL, weights_of(SMALL))
    (folder / "model.safetensors").unlink()
    torch.save({"a": torch.ones(1)}, folder / "pytorch_model-00001.bin")
    index = '{"weight_map": {"a": "pytorch_model-00001.bin"}}'
    (folder / "pytorch_model.bin.index.json").write_text(index)
    (folder / name).write_bytes(POINTER)
    with pytest.raises(CheckpointError, match=SAID):
        load_checkpoint(f"hf:{folder}", Request())


@pytest.mark.parametrize("name", ["labels.txt", "labels.json"])
def test_labels_and_preprocessing_that_are_a_pointer_say_so(name: str, tmp_path: Path) -> None:
    path = Path(write(tmp_path, name, POINTER.decode()))
    with pytest.raises(CheckpointError, match=SAID):
        labels_for(path, 3, "x")
    with pytest.raises(CheckpointError, match=SAID):
        preprocessing_for(str(path), (32, 32))


@pytest.mark.parametrize("name", ["cat.jpg", "cat.png", "cat"])
def test_an_image_that_is_a_pointer_says_so(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(POINTER)
    with pytest.raises(ImageDecodeError, match=SAID):
        load_image(tmp_path / name)


def test_a_graph_or_its_weights_that_are_a_pointer_say_so(tmp_path: Path) -> None:
    (tmp_path / "x.onnx").write_bytes(POINTER)
    with pytest.raises(ModelError, match=SAID):
        read_model(tmp_path / "x.onnx")
    tensor = helper.make_tensor("w", TensorProto.FLOAT, [256], bytes(1024), raw=True)
    value = helper.make_tensor_value_info("y", TensorProto.FLOAT, [256])
    node = helper.make_node("Identity", ["w"], ["y"])
    model = helper.make_model(helper.make_graph([node], "g", [], [value], [tensor]))
    onnx.save(model, tmp_path / "y.onnx", save_as_external_data=True, location="y.data")
    facts = read_model(tmp_path / "y.onnx")
    check_external_data(tmp_path / "y.onnx", facts)
    (tmp_path / "y.data").write_bytes(POINTER)
    with pytest.raises(ModelError, match=SAID):
        check_external_data(tmp_path / "y.onnx", facts)


@pytest.mark.parametrize(
    "name", ["manifest.json", "model.onnx", "golden.npz", "labels.txt", "parity.json"]
)
def test_a_file_of_a_bundle_that_is_a_pointer_says_so(bundle: Bundle, name: str) -> None:
    (bundle.path / name).write_bytes(POINTER)
    with pytest.raises(BundleError, match=f"{name}: .*{SAID}"):
        Bundle.read(bundle.path)
