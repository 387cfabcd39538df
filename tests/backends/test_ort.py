"""ONNX Runtime: engines that are ours alone, providers that are what was asked for."""

from __future__ import annotations

import ctypes
import dataclasses
import json
import logging
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vit_edge import verify
from vit_edge.backends import ort
from vit_edge.backends.ort import engine, packed, session, version
from vit_edge.build import __main__ as build
from vit_edge.bundle import Bundle, engines, integrity
from vit_edge.bundle.bundle import MODEL_NAME, write_manifest
from vit_edge.bundle.manifest import json_from_manifest
from vit_edge.errors import (
    BackendError,
    EngineError,
    IntegrityError,
    ModelError,
    ResourceError,
    UsageError,
)
from vit_edge.machine import cpus

requires = ("onnxruntime",)

RANDOM_BYTES = np.random.default_rng(0).bytes(64)


def pixels(bundle: Bundle) -> Any:
    shape = bundle.manifest.input.shape[1:]
    return np.random.default_rng(0).standard_normal((2, *shape)).astype(np.float32)


def test_a_built_engine_answers_like_the_model_and_is_used_by_itself(bundle: Bundle) -> None:
    plain = ort.load(bundle)
    engine = ort.build(bundle)
    assert engine.parent == bundle.path / "engines"
    built = ort.load(bundle)
    assert built.facts["engine"] == engine.name
    expected, found = plain.run(pixels(bundle)), built.run(pixels(bundle))
    for name, values in expected.items():
        assert np.abs(found[name] - values).max() <= 1e-6 * np.abs(values).max()
    assert ort.load(bundle, engine="never").facts["engine"].startswith("none")


def test_weights_of_an_engine_are_packed_and_beside_the_graph(bundle: Bundle) -> None:
    engine = ort.build(bundle)
    assert sorted(path.name for path in engine.iterdir()) == [
        "engine.json",
        "model.onnx",
        "model.onnx.data",
    ]
    graph, weights = (engine / name for name in ("model.onnx", "model.onnx.data"))
    assert graph.stat().st_size < weights.stat().st_size
    assert weights.stat().st_size > bundle.model_path.stat().st_size * 0.9


def test_building_again_replaces_the_engine(bundle: Bundle) -> None:
    first = ort.build(bundle)
    (first / "left-behind").touch()
    assert ort.build(bundle) == first
    assert not (first / "left-behind").exists()
    assert [path.name for path in first.parent.iterdir()] == [first.name]


@pytest.mark.parametrize("name", ["model.onnx", "model.onnx.data"])
def test_a_tampered_engine_is_never_run(
    bundle: Bundle, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    engine = ort.build(bundle)
    data = bytearray((engine / name).read_bytes())
    data[len(data) // 2] ^= 1
    before = (engine / name).stat()
    with (engine / name).open("r+b") as file:
        file.write(data)
    os.utime(engine / name, ns=(before.st_atime_ns, before.st_mtime_ns))
    with caplog.at_level(logging.WARNING):
        assert ort.load(bundle).facts["engine"].startswith("none")
    assert "changed since" in caplog.text
    with pytest.raises(EngineError, match="vit-edge build"):
        ort.load(bundle, engine="required")


def test_an_engine_that_came_with_a_bundle_is_never_run(bundle: Bundle, tmp_path: Path) -> None:
    ort.build(bundle)
    shutil.copytree(bundle.path, tmp_path / "shipped")
    with pytest.raises(EngineError, match="was not built here"):
        ort.load(Bundle.read(tmp_path / "shipped"), engine="required")


def test_an_engine_that_came_along_does_not_hide_the_one_built_here(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bundle that is read-only in an image, with engines/ of the machine that made the image."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    ort.build(bundle)
    shipped = Bundle.read(shutil.copytree(bundle.path, tmp_path / "shipped"))
    first, cache = engines.folders(shipped, None)
    monkeypatch.setattr(engines, "folders", lambda *_: [cache])
    built = ort.build(shipped)
    monkeypatch.setattr(engines, "folders", lambda *_: [first, cache])
    assert (first / built.name).is_dir()
    assert ort.find(shipped).path == built


def test_an_engine_for_another_machine_is_said_and_not_used(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    ort.build(bundle)
    monkeypatch.setattr(cpus, "cpu_features", lambda: ("neon",))
    with caplog.at_level(logging.WARNING):
        assert ort.load(bundle).facts["engine"].startswith("none")
    assert "another model, runtime or machine" in caplog.text


def test_engines_go_where_they_are_told(bundle: Bundle, tmp_path: Path) -> None:
    engine = ort.build(bundle, tmp_path / "elsewhere")
    assert engine.parent == tmp_path / "elsewhere"
    assert ort.load(bundle, engines_dir=tmp_path / "elsewhere").facts["engine"] == engine.name
    assert ort.load(bundle).facts["engine"] == "none (none was built)"


def test_a_read_only_bundle_gets_its_engine_in_the_cache(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file in the place of engines/ stands for a read-only bundle: root can write anywhere."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (bundle.path / "engines").touch()
    engine = ort.build(bundle)
    assert tmp_path / "cache" in engine.parents
    assert ort.load(bundle).facts["engine"] == engine.name


def test_no_place_for_an_engine_is_an_error(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ResourceError, match="another --out|with --out"):
        ort.build(bundle, tmp_path / "file")


def test_a_changed_model_is_refused_before_the_runtime_sees_it(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = bytearray(bundle.model_path.read_bytes())
    data[-5] ^= 0xFF
    bundle.model_path.write_bytes(data)
    monkeypatch.setattr(ort, "open_session", lambda *_: pytest.fail("parsed"))
    with pytest.raises((IntegrityError, ModelError)):
        ort.load(bundle)


@pytest.mark.parametrize("content", [b"", b"\x00" * 64, b"\xff" * 64, RANDOM_BYTES])
def test_random_bytes_are_refused_before_the_runtime_sees_them(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    """Even with a manifest that agrees with them."""
    bundle.model_path.write_bytes(content)
    write_manifest(bundle.path, bundle.manifest)
    monkeypatch.setattr(ort, "open_session", lambda *_: pytest.fail("parsed"))
    with pytest.raises(ModelError):
        ort.load(Bundle.read(bundle.path))


def test_a_provider_that_is_not_there_is_an_error(bundle: Bundle) -> None:
    with pytest.raises(BackendError, match="CUDAExecutionProvider"):
        ort.load(bundle, provider="cuda")


@pytest.mark.parametrize(
    "arguments", [{"threads": 0}, {"provider": "npu"}, {"micro_batch": 0}, {"engine": "maybe"}]
)
def test_wrong_options_are_refused(bundle: Bundle, arguments: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        ort.load(bundle, **arguments)


def test_the_build_verb_prints_json(bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    assert build.main([str(bundle.path), "--json"]) == 0
    assert Path(json.loads(capsys.readouterr().out)["engine"]).is_dir()


def test_the_verify_verb_finds_one_changed_byte(
    bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    assert verify.main([str(bundle.path)]) == 0
    golden = bytearray(bundle.golden_path.read_bytes())
    golden[100] ^= 1
    bundle.golden_path.write_bytes(golden)
    assert verify.main([str(bundle.path)]) == 3
    assert "golden.npz: sha256" in capsys.readouterr().err


def test_weights_outside_the_manifest_are_refused(bundle: Bundle) -> None:
    onnx = pytest.importorskip("onnx")
    model = onnx.load(bundle.model_path)
    onnx.save(model, bundle.model_path, save_as_external_data=True, location="w.bin")
    manifest = write_manifest(bundle.path, bundle.manifest)
    del manifest.files["w.bin"]
    (bundle.path / "manifest.json").write_text(json_from_manifest(manifest))
    with pytest.raises(ModelError, match=r"'w\.bin', which the manifest does not list"):
        integrity.ensure_verified(Bundle.read(bundle.path))


def test_a_full_disk_is_not_taken_for_a_bad_model(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(bundle.path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=0))
    with pytest.raises(ResourceError, match="another --out|with --out"):
        ort.build(bundle)


def test_a_pickled_backend_finds_its_bundle_from_anywhere(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(bundle.path.parent)
    data = pickle.dumps(ort.load(Bundle.read(bundle.path.name), threads=1))
    monkeypatch.chdir("/")
    assert pickle.loads(data).facts["threads"] == "1"


def test_a_model_that_contradicts_its_manifest_is_refused(bundle: Bundle) -> None:
    onnx = pytest.importorskip("onnx")
    model = onnx.load(bundle.model_path)
    model.graph.input[0].name = "image"
    for node in model.graph.node:
        for index, name in enumerate(node.input):
            if name == "pixel_values":
                node.input[index] = "image"
    model.graph.output[0].type.tensor_type.shape.dim[0].dim_value = 1
    onnx.save(model, bundle.model_path)
    write_manifest(bundle.path, bundle.manifest)
    with pytest.raises(ModelError, match=r"(?s)inputs are \['image'\].*output logits is \[1, 10\]"):
        integrity.ensure_verified(Bundle.read(bundle.path))


def test_bf16_is_refused_on_the_cpu_with_the_way_out(bundle: Bundle) -> None:
    manifest = dataclasses.replace(bundle.manifest, precision="bf16")
    write_manifest(bundle.path, manifest)
    with pytest.raises(BackendError, match=r"no BF16 MatMul.*cuda"):
        ort.load(Bundle.read(bundle.path))
    with pytest.raises(BackendError, match="no BF16 MatMul"):
        ort.build(Bundle.read(bundle.path))


def test_an_engine_holds_its_weights_once_and_answers_the_same(
    bundle: Bundle,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Up to onnxruntime 1.31; newer ones need both, which is said."""
    pixels = np.random.default_rng(0).standard_normal((3, *bundle.manifest.input.shape[1:]))
    small = ort.build(bundle)
    found = ort.load(bundle, engine="required").run(pixels.astype(np.float32))["logits"]
    monkeypatch.setattr(engine, "_compact", lambda *_: None)
    large = ort.build(bundle, tmp_path / "plain")
    expected = ort.load(bundle, engine="required", engines_dir=tmp_path / "plain")
    np.testing.assert_array_equal(found, expected.run(pixels.astype(np.float32))["logits"])
    external = packed.external_data(large / MODEL_NAME).values()
    twice = sum(int(entry["length"]) for entry in external if packed.blobs(entry))
    assert twice > 200_000
    less = stored(large / engine.WEIGHTS_NAME) - stored(small / engine.WEIGHTS_NAME)
    if version.release(version.installed_version()) < version.COMPARES_PACKED:
        assert less > 0.9 * twice
        assert not caplog.messages
    else:
        assert less == 0
        assert ["twice on the disk" in message for message in caplog.messages] == [True]


@pytest.mark.parametrize(
    ("installed", "reason"),
    [("1.32.0", "compares packed weights with the unpacked ones"), ("1.31.1", "stand in")],
)
def test_a_runtime_that_compares_packed_weights_gets_both_and_is_not_blamed_on_the_opset(
    installed: str,
    reason: str,
    bundle: Bundle,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    real = packed.compacted

    def refused(*arguments: Any) -> Any:
        real(*arguments)
        raise BackendError("Serialized pre-packed weights for node a do not match the buffers")

    monkeypatch.setattr(packed, "compacted", refused)
    monkeypatch.setattr(engine, "installed_version", lambda: installed)
    built = ort.build(bundle)
    external = packed.external_data(built / MODEL_NAME).values()
    assert any(packed.blobs(entry) for entry in external)
    (message,) = caplog.messages
    assert reason in message
    assert f"onnxruntime {installed}" in message
    assert "opset" not in message


@pytest.mark.parametrize(
    ("reason", "remedy", "not_said"),
    [
        ("Serialized pre-packed weights for node a do not match", "make the engine again", "opset"),
        ("[ONNXRuntimeError] : 9 : NOT_IMPLEMENTED : Could not find", "lower --opset", "engine"),
        ("Unsupported model IR version: 13, max supported: 11", "lower --opset", "engine"),
        ("Opset 25 is under development", "lower --opset", "engine"),
        ("Protobuf parsing failed", "refuses it", "opset"),
    ],
)
def test_a_refusal_names_the_remedy_that_fits(
    reason: str, remedy: str, not_said: str, tmp_path: Path
) -> None:
    class Runtime:
        __version__ = "1.99"

        @staticmethod
        def get_available_providers() -> list[str]:
            return ["CPUExecutionProvider"]

        @staticmethod
        def InferenceSession(*_: Any, **__: Any) -> None:
            raise RuntimeError(reason)

    class Options:
        optimized_model_filepath = ""

    with pytest.raises(BackendError, match=remedy) as caught:
        session.open_session(Runtime, tmp_path / "model.onnx", Options, "cpu")
    assert not_said not in str(caught.value)


def stored(file: Path) -> int:
    """Bytes on the disk, holes left out."""
    return 512 * file.stat().st_blocks


def test_an_engine_that_would_answer_otherwise_is_not_made_smaller(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As with a runtime that used the initializers which stand in for packed weights."""
    real = packed.compacted

    def damaged(external: Any, keys: Any, source: Path, target: Path) -> Any:
        changed = real(external, keys, source, target)
        names = [name for name, entry in changed.items() if "prepacked_0" in entry]
        del changed[names[0]]["prepacked_0"]
        return changed

    expected = ort.load(bundle, engine="never")
    monkeypatch.setattr(packed, "compacted", damaged)
    ort.build(bundle)
    assert "holds its weights twice" in caplog.text
    pixels = np.zeros((1, *bundle.manifest.input.shape[1:]), np.float32)
    found = ort.load(bundle, engine="required").run(pixels)["logits"]
    np.testing.assert_allclose(found, expected.run(pixels)["logits"], atol=1e-5)


@pytest.mark.parametrize(
    "options", [{"micro_batch": 1}, {"micro_batch": 2}, {"arena": False}, {"trim": True}]
)
def test_options_do_not_change_the_answers(
    bundle: Bundle, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ort, "return_large_blocks", lambda: None)  # it is for a whole process
    shape = (4, *bundle.manifest.input.shape[1:])
    pixels = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    expected = ort.load(bundle).run(pixels)
    for name, found in ort.load(bundle, **options).run(pixels).items():
        np.testing.assert_allclose(found, expected[name], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("use", "shared", "arena"),
    [({}, True, True), ({"arena": False}, False, True), ({"trim": True}, False, False)],
)
def test_in_less_memory_a_tensor_gives_its_place_on_after_its_last_use(
    use: dict[str, Any], shared: bool, arena: bool
) -> None:
    import onnxruntime

    asked = ort.LoadOptions(**use)
    options = session.session_options(onnxruntime, asked, "int8", optimize=False)
    assert options.enable_mem_pattern is options.enable_mem_reuse is shared
    assert options.enable_cpu_mem_arena is arena


LARGE_BLOCKS = """
import ctypes, sys
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]
if sys.argv[1] == "trimmed":
    from vit_edge.backends.ort.session import return_large_blocks
    return_large_blocks()
class Info(ctypes.Structure):
    _fields_ = [(f"field{at}", ctypes.c_int) for at in range(10)]
libc.mallinfo.restype = Info
libc.free(libc.malloc(1 << 23))  # raises the threshold, unless it was set
before = libc.mallinfo().field3  # hblks: blocks that are mapped by themselves
kept = libc.malloc(1 << 22)
print(libc.mallinfo().field3 - before)
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallinfo"), reason="glibc's malloc is not here")
@pytest.mark.parametrize(("setting", "mapped"), [("trimmed", 1), ("plain", 0)])
def test_large_blocks_are_handed_back_where_that_was_asked_for(setting: str, mapped: int) -> None:
    argv = [sys.executable, "-c", LARGE_BLOCKS, setting]
    done = subprocess.run(argv, check=True, capture_output=True, text=True)
    assert int(done.stdout) == mapped


def test_trimming_is_asked_of_malloc_once_and_told(
    testing_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bool] = []
    monkeypatch.setattr(ort, "return_large_blocks", lambda: asked.append(True))
    assert ort.load(testing_bundle).facts["arena"] == "on"
    assert not asked
    assert ort.load(testing_bundle, trim=True).facts["arena"] == "trimmed"
    assert asked == [True]
