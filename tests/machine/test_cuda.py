"""What the NVIDIA driver tells, and all the ways in which it does not."""

from __future__ import annotations

import ctypes
import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from vit_edge.backends.trt import cudart
from vit_edge.errors import BackendError
from vit_edge.machine.cuda import gpus

FOLDER = Path(__file__).resolve().parents[1] / "support" / "fake_gpu"


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.syspath_prepend(str(FOLDER))
    sys.modules.pop("fake_cuda", None)
    yield importlib.import_module("fake_cuda")
    sys.modules.pop("fake_cuda", None)


def test_every_gpu_is_told(cuda: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_GPUS", "2")
    found = gpus(cuda.Libcuda())
    assert (found.cuda, found.reason) == ("13.2", "")
    first, second = found.found
    assert (first.index, first.name, first.sm) == (0, "Fake GPU 0", "SM87")
    assert (second.index, second.name) == (1, "Fake GPU 1")
    assert (first.multiprocessors, first.memory_bytes, first.integrated) == (8, 8 * 10**9, False)


def test_no_driver_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> Any:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", absent)
    assert gpus() == ((), None, "no NVIDIA driver: libcuda.so.1: cannot open shared object file")


def test_a_driver_without_a_gpu_says_how_to_show_one(
    cuda: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_GPUS", "0")
    found = gpus(cuda.Libcuda())
    assert found.cuda == "13.2"
    assert "CUDA_VISIBLE_DEVICES" in found.reason


@pytest.mark.parametrize("call", ["cuInit", "cuDeviceGetCount", "cuDeviceTotalMem_v2"])
def test_a_driver_that_refuses_is_a_reason_with_its_code(cuda: Any, call: str) -> None:
    cuda.STATE.fail[call] = 803
    found = gpus(cuda.Libcuda())
    assert found.found == ()
    assert found.reason.endswith(f"{call}: CUDA_ERROR_UNKNOWN (803)")


def test_a_stub_of_a_driver_is_a_reason() -> None:
    class Stub:
        def cuDriverGetVersion(self, out: Any) -> int:
            return 0

    assert "is no NVIDIA driver" in gpus(Stub()).reason


def test_the_real_driver_is_asked_without_an_error() -> None:
    found = gpus()
    assert bool(found.found) == (found.reason == "")


# The CUDA runtime


def test_a_missing_runtime_says_what_was_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cudart, "_candidates", lambda newest: iter(["libcudart.so.nonesuch"]))
    with pytest.raises(BackendError, match=r"(?s)apt install.*libcudart.so.nonesuch"):
        cudart.open_cudart()


def test_a_library_without_the_calls_is_passed_over(
    cuda: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[str] = []

    def load(name: str) -> Any:
        loaded.append(name)
        return object() if len(loaded) == 1 else cuda.Libcudart()

    monkeypatch.setattr(cudart, "_candidates", lambda newest: iter(["old", "new"]))
    monkeypatch.setattr(cudart, "gpus", lambda: gpus(cuda.Libcuda()))
    monkeypatch.setattr(ctypes, "CDLL", load)
    assert cudart.open_cudart().memory().total_bytes == 8 * 10**9
    assert loaded == ["old", "new"]


def test_wheels_of_the_runtime_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("nvidia/cu13/lib/libcudart.so.13", "nvidia/cuda_runtime/lib/libcudart.so.12"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    thirteen = str(tmp_path / "nvidia/cu13/lib/libcudart.so.13")
    twelve = str(tmp_path / "nvidia/cuda_runtime/lib/libcudart.so.12")
    found = list(cudart._candidates(13))
    assert found[:3] == ["libcudart.so.13", "libcudart.so.12", "libcudart.so.11"]
    assert {thirteen, twelve} <= set(found)
    # a driver of CUDA 12 cannot serve a runtime of CUDA 13
    assert thirteen not in (found := list(cudart._candidates(12)))
    assert twelve in found
