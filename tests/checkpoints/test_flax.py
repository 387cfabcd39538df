"""Flax's .msgpack: equal to transformers 4; whatever else a file holds is refused."""

from __future__ import annotations

import shutil
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.checkpoints.foreign import (
    HEADLESS,
    SMALL,
    assert_same_weights,
    hf_config,
    hf_processor,
    hf_tensors,
    logits_of,
    weights_of,
    write_json,
)
from vit_edge.bundle.architecture import Architecture
from vit_edge.checkpoints import Request, load_checkpoint
from vit_edge.checkpoints.flax import open_flax
from vit_edge.errors import LFS_MAGIC, CheckpointError

requires = ("torch", "safetensors")

SAVED = Path(__file__).parents[1] / "data" / "flax"


def packed(value: object) -> bytes:
    """Msgpack with the widest sizes; an array as flax.serialization has it."""
    if isinstance(value, dict):
        pairs = b"".join(packed(key) + packed(inner) for key, inner in value.items())
        return b"\xdf" + struct.pack(">I", len(value)) + pairs
    if isinstance(value, (list, tuple)):
        return b"\xdd" + struct.pack(">I", len(value)) + b"".join(map(packed, value))
    if isinstance(value, str):
        return b"\xdb" + struct.pack(">I", len(value.encode())) + value.encode()
    if isinstance(value, bytes):
        return b"\xc6" + struct.pack(">I", len(value)) + value
    if isinstance(value, np.ndarray):
        return extension(1, packed([list(value.shape), value.dtype.name, value.tobytes()]))
    if isinstance(value, torch.Tensor):
        data = value.contiguous().view(torch.int16).numpy().tobytes()
        return extension(1, packed([list(value.shape), "bfloat16", data]))
    if isinstance(value, bool) or value is None:
        return {None: b"\xc0", False: b"\xc2", True: b"\xc3"}[value]
    assert isinstance(value, int)
    return b"\xd3" + struct.pack(">q", value)


def extension(kind: int, data: bytes) -> bytes:
    return b"\xc9" + struct.pack(">Ib", len(data), kind) + data


def tree(a: Architecture, prefix: str = "vit.", bfloat16: bool = False) -> dict[str, Any]:
    """The parameters as FlaxViT holds them."""
    nested: dict[str, Any] = {}
    for name, tensor in hf_tensors(weights_of(a), prefix).items():
        *modules, leaf = name.split(".")
        if leaf == "weight":
            leaf = "scale" if "layernorm" in modules[-1] else "kernel"
            axes = {1: (0,), 2: (1, 0), 4: (2, 3, 1, 0)}[tensor.ndim]
            tensor = tensor.permute(axes)
        place = nested
        for module in modules:
            place = place.setdefault(module, {})
        place[leaf] = tensor.bfloat16() if bfloat16 else tensor.contiguous().numpy()
    return nested


def chunked(array: np.ndarray) -> dict[str, Any]:
    """An array as flax writes it beyond 1 GiB."""
    flat = array.reshape(-1)
    return {
        "__msgpack_chunked_array__": True,
        "shape": {str(i): size for i, size in enumerate(array.shape)},
        "chunks": {"0": flat[:7], "1": flat[7:]},
    }


def folder_of(folder: Path, a: Architecture = SMALL) -> Path:
    write_json(folder / "config.json", hf_config(a))
    write_json(folder / "preprocessor_config.json", hf_processor(a))
    return folder


def test_answers_equal_those_of_transformers(tmp_path: Path) -> None:
    """A file that FlaxViTForImageClassification saved, with the logits that it computed."""
    shutil.copytree(SAVED, tmp_path / "x")
    processor = hf_processor(SMALL, size={"height": 12, "width": 12})
    write_json(tmp_path / "x" / "preprocessor_config.json", processor)
    answers = np.load(SAVED / "answers.npz")
    for source in ("x", "x/flax_model.msgpack"):
        loaded = load_checkpoint(str(tmp_path / source), Request())
        found = logits_of(loaded, torch.from_numpy(answers["pixels"])).numpy()
        np.testing.assert_allclose(found, answers["logits"], atol=1e-6)


@pytest.mark.parametrize("name", ["flax_model.msgpack", "weights"])
@pytest.mark.parametrize("a", [SMALL, HEADLESS], ids=["classifier", "model"])
def test_every_parameter_finds_its_place(a: Architecture, name: str, tmp_path: Path) -> None:
    file = folder_of(tmp_path, a) / name
    data = packed(tree(a, "vit." if a.num_classes else ""))
    # as msgpack itself writes a small map; a file with another name is known by that
    file.write_bytes(bytes([0x80 + data[4]]) + data[5:])
    loaded = load_checkpoint(str(file), Request())
    assert_same_weights(loaded, weights_of(a))
    assert set(loaded.record.sha256) == {name, "config.json", "preprocessor_config.json"}


def test_safetensors_are_preferred_and_flax_is_the_last(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    (folder_of(tmp_path) / "flax_model.msgpack").write_bytes(packed(tree(SMALL)))
    other = weights_of(SMALL, seed=1)
    save_file(hf_tensors(other), tmp_path / "model.safetensors")
    assert_same_weights(load_checkpoint(str(tmp_path), Request()), other)


def test_bfloat16_is_taken_to_the_bit(tmp_path: Path) -> None:
    (folder_of(tmp_path) / "flax_model.msgpack").write_bytes(packed(tree(SMALL, bfloat16=True)))
    rounded = {name: t.bfloat16().float() for name, t in weights_of(SMALL).items()}
    assert_same_weights(load_checkpoint(str(tmp_path), Request()), rounded)


def test_arrays_in_pieces_are_put_together(tmp_path: Path) -> None:
    nested = tree(SMALL)
    for module in (nested["classifier"], nested["vit"]["embeddings"]):
        for leaf, array in module.items():
            module[leaf] = array if isinstance(array, dict) else chunked(array)
    (folder_of(tmp_path) / "flax_model.msgpack").write_bytes(packed(nested))
    assert_same_weights(load_checkpoint(str(tmp_path), Request()), weights_of(SMALL))


def test_shards_are_put_together(tmp_path: Path) -> None:
    nested = tree(SMALL)
    names = ["flax_model-00001-of-00002.msgpack", "flax_model-00002-of-00002.msgpack"]
    for name, key in zip(names, ("vit", "classifier"), strict=True):
        (folder_of(tmp_path) / name).write_bytes(packed({key: nested[key]}))
    weight_map = {
        name.replace(".", "/").replace("/weight", "/scale" if "norm" in name else "/kernel"):
        names[name.startswith("classifier")]
        for name in hf_tensors(weights_of(SMALL))
    }  # fmt: skip
    write_json(tmp_path / "flax_model.msgpack.index.json", {"weight_map": weight_map})
    assert_same_weights(load_checkpoint(str(tmp_path), Request()), weights_of(SMALL))
    write_json(tmp_path / "flax_model.msgpack.index.json", {"weight_map": {"a/b": names[0]}})
    with pytest.raises(CheckpointError, match=r"a\.b is missing"):
        load_checkpoint(str(tmp_path), Request())


def test_a_training_state_is_read_by_key(tmp_path: Path) -> None:
    file = folder_of(tmp_path) / "state.msgpack"
    state = {"step": 7, "params": tree(SMALL), "opt_state": {"0": {"mu": tree(SMALL)}, "1": None}}
    file.write_bytes(packed(state))
    with pytest.raises(CheckpointError, match="--key params"):
        load_checkpoint(str(file), Request())
    assert_same_weights(load_checkpoint(str(file), Request(key="params")), weights_of(SMALL))


ARRAY = np.zeros((2, 3), np.float32)


def claiming(shape: object, dtype: object = "float32", data: object = b"\0" * 24) -> bytes:
    return packed({"a": 0})[:-9] + extension(1, packed([shape, dtype, data]))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "cannot mmap an empty file"),
        (b"\xc1", "0xc1 at byte 0 is none of msgpack's"),
        (packed([ARRAY]), "a map was expected, not list"),
        (packed({"a": ARRAY}) + b"\0", "1 bytes are left over"),
        (packed({"a": "text"}), "a: an array was expected"),
        (packed({"a": {"b": [ARRAY]}}), "a.b: an array was expected"),
        (packed({"a": 0})[:-9] + extension(2, b"\0" * 16), "a: an array was expected"),
        (packed({"a": 0})[:-9] + extension(1, packed([1, 2])), "a shape, a dtype and its bytes"),
        (packed({"a": 0})[:-9] + extension(1, b"\x93\x01"), "a: 1 bytes or values|a: "),
        (claiming([2**20, 2**20]), "needs 4398046511104 bytes, there are 24"),
        (claiming([2**39] * 8), "needs .* bytes, there are 24"),
        (claiming([1] * 9), "a list of a few sizes"),
        (claiming([-2, -3]), "not negative"),
        (claiming([True, 6]), "not negative"),
        (claiming("23"), "a list of a few sizes"),
        (claiming([2, 3], "object"), "dtype 'object'; expected one of float64"),
        (claiming([2, 3], "\x1b[31mfloat8_e4m3fn"), "dtype 'float8_e4m3fn'"),
        (claiming([2, 3], 4), "a shape, a dtype and its bytes"),
        (claiming([2, 3], "float32", "x"), "a shape, a dtype and its bytes"),
        (b"\xdf\xff\xff\xff\xff" + packed("a"), "8589934590 bytes or values at byte 5"),
        (b"\x81\xa1a\xdd\x7f\xff\xff\xff", "2147483647 bytes or values"),
        (b"\x81\xa1a\xc9\x7f\xff\xff\xff\x01", "2147483647 bytes or values"),
        (b"\x81\xdb\xff\xff\xff\xffa", "4294967295 bytes or values"),
        (b"\x81\xa1a" * 100_000, "more than 64 maps in maps"),
        (b"\x81\xa1a" + b"\x91" * 100_000, "more than 64 maps in maps"),
        (b"\xdd\x00\x20\x00\x00" + b"\xc0" * 2**21, "1048576 values"),
        (b"\x82" + (b"\xa1a" + packed(ARRAY)) * 2, "has a key twice"),
        (b"\x81\x01" + packed(ARRAY), "or one that is no text"),
        (b"\x81\xa2\xff\xfe" + packed(ARRAY), "can't decode byte"),
        (packed({"a": chunked(ARRAY) | {"shape": {"0": 7}}}), "needs 28 bytes, there are 24"),
        (packed({"a": chunked(ARRAY) | {"shape": 3}}), "a shape and chunks, numbered"),
        (packed({"a": chunked(ARRAY) | {"chunks": {"1": ARRAY}}}), "numbered"),
        (packed({"a": chunked(ARRAY) | {"chunks": {}}}), "pieces of one dtype"),
        (LFS_MAGIC + b"spec/v1\n", "Git LFS"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_no_sound_file_is_refused(data: bytes, message: str, tmp_path: Path) -> None:
    file = tmp_path / "flax_model.msgpack"
    file.write_bytes(data)
    with pytest.raises(CheckpointError, match=message) as caught:
        open_flax(file)
    assert str(file) in str(caught.value)
    assert "\x1b" not in str(caught.value)


def test_names_that_become_one_are_refused(tmp_path: Path) -> None:
    for doubled in ({"a": {"kernel": ARRAY, "scale": ARRAY}}, {"a": {"b": ARRAY}, "a.b": ARRAY}):
        (tmp_path / "x").write_bytes(packed(doubled))
        with pytest.raises(CheckpointError, match="two arrays are called"):
            open_flax(tmp_path / "x")


def test_a_file_cut_anywhere_is_refused(tmp_path: Path) -> None:
    whole = (SAVED / "flax_model.msgpack").read_bytes()
    for size in [*range(64), *range(64, len(whole), 997), len(whole) - 1]:
        (tmp_path / "cut.msgpack").write_bytes(whole[:size])
        with pytest.raises(CheckpointError):
            open_flax(tmp_path / "cut.msgpack")


def test_bytes_changed_anywhere_raise_nothing_else(tmp_path: Path) -> None:
    whole = (SAVED / "flax_model.msgpack").read_bytes()
    generator = np.random.default_rng(0)
    refused = 0
    for _ in range(300):
        data = np.frombuffer(whole, np.uint8).copy()
        data[generator.integers(0, len(data) // 8, 8)] = generator.integers(0, 256, 8)
        (tmp_path / "x").write_bytes(data.tobytes())
        try:
            for tensor in open_flax(tmp_path / "x").values():
                assert tensor.read().shape == tensor.shape
        except CheckpointError:
            refused += 1
    assert 0 < refused < 300


def test_a_file_that_shrinks_while_it_is_read_is_refused(tmp_path: Path) -> None:
    shutil.copy(SAVED / "flax_model.msgpack", tmp_path / "x")
    tensors = open_flax(tmp_path / "x")
    (tmp_path / "x").write_bytes(b"")
    with pytest.raises(CheckpointError, match="it is shorter now"):
        tensors["classifier.weight"].read()
