"""Probes: the runtimes. All of these are to be run in a child, where they import what they ask."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vit_edge.doctor.findings import Finding, one_line
from vit_edge.doctor.packages import pip_packages

_ORT_PACKAGES = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino", "onnxruntime-qnn")
_REMOTE = {"AzureExecutionProvider"}  # in every wheel; computes elsewhere
_WITH_ERROR = re.compile(r" with error: ([^\x1b]+)")  # its words about a library not loaded
_OPTIONAL = {"TensorrtExecutionProvider"}  # in every GPU wheel, which lacks TensorRT itself
_EXPORT_EXTRA = ("torch", "onnx", "onnxscript", "onnx-ir")


def onnx_runtime(root: Path) -> Finding:
    """ONNX Runtime: its version, and which of its providers really run a node."""
    packages = {n: v for n, v in pip_packages().items() if n in _ORT_PACKAGES}
    facts: dict[str, Any] = {"packages": packages}
    runtime = _import("onnxruntime")
    if isinstance(runtime, Finding):
        return runtime
    if hasattr(runtime, "preload_dlls"):  # 1.21: finds CUDA and cuDNN in the nvidia-* wheels
        runtime.preload_dlls()
    refused: dict[str, str] = {}
    present = [name for name in runtime.get_available_providers() if name not in _REMOTE]
    for provider in present:
        if reason := _refusal(runtime, provider):
            refused[provider] = reason
    running = [name for name in present if name not in refused]
    facts |= {"version": runtime.__version__, "providers": running, "refused": refused}
    text = f"{runtime.__version__}: {', '.join(running) or 'no provider works'}"
    text += "".join(f"; {name} is listed but {why}" for name, why in refused.items())
    trouble = len(packages) > 1 or bool(refused.keys() - _OPTIONAL)
    if len(packages) > 1:
        names = " and ".join(packages)
        text += f"; {names} overwrite each other's files: uninstall both, then install one"
    return Finding("trouble" if trouble else "ok", text, facts)


def openvino(root: Path) -> Finding:
    """OpenVINO: its version and devices."""
    module = _import("openvino")
    if isinstance(module, Finding):
        return module
    core = module.Core()
    devices = {
        name: str(core.get_property(name, "FULL_DEVICE_NAME")) for name in core.available_devices
    }
    version = pip_packages().get("openvino") or str(module.__version__)
    text = f"{version}: {', '.join(f'{name} ({full})' for name, full in devices.items())}"
    return Finding("ok" if devices else "trouble", text, {"version": version, "devices": devices})


def tensorrt(root: Path) -> Finding:
    """TensorRT's Python module."""
    return _module("tensorrt")


def tensorrt_rtx(root: Path) -> Finding:
    """TensorRT-RTX's Python module: TensorRT for RTX desktops, from PyPI."""
    return _module("tensorrt_rtx")


def export_extra(root: Path) -> Finding:
    """Find the packages that exporting needs; a device does without."""
    packages = pip_packages()
    present = {name: packages[name] for name in _EXPORT_EXTRA if name in packages}
    missing = [name for name in _EXPORT_EXTRA if name not in packages]
    text = ", ".join(f"{name} {version}" for name, version in present.items())
    if missing:
        text += ("; " if text else "") + f"without {', '.join(missing)}: a device needs none of it"
    return Finding("absent" if missing else "ok", text, {"versions": present})


def _module(name: str) -> Finding:
    module = _import(name)
    if isinstance(module, Finding):
        return module
    version = str(module.__version__)
    return Finding("ok", version, {"version": version})


def _import(name: str) -> Any:
    """A module, or the finding that it is absent or does not import."""
    if importlib.util.find_spec(name) is None:
        return Finding("absent", "not installed")
    try:
        return importlib.import_module(name)
    except Exception as error:  # a missing library, another NumPy, another CPU
        return Finding("trouble", f"does not import: {one_line(str(error))}", {"error": str(error)})


def _refusal(runtime: Any, provider: str) -> str:
    """Say why a provider does not run the smallest model there is; empty if it does."""
    said: list[str] = []
    try:
        with _native_stderr(said):
            session = runtime.InferenceSession(_smallest_model(), providers=[provider])
    except Exception as error:  # the runtime's exceptions have no common base but this
        return f"fails: {one_line(str(error))}"
    if session.get_providers()[0] == provider:
        return ""
    # ONNX Runtime goes on without the provider, and says why on stderr only.
    reason = next((match[1] for line in said if (match := _WITH_ERROR.search(line))), "")
    return f"does not load: {reason or 'its libraries are missing or do not fit'}"


@contextlib.contextmanager
def _native_stderr(lines: list[str]) -> Iterator[None]:
    """Collect what libraries write to the process's stderr, past Python's."""
    with tempfile.TemporaryFile() as file:
        saved = os.dup(2)
        os.dup2(file.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(saved, 2)
            os.close(saved)
            file.seek(0)
            lines += file.read().decode("utf-8", "replace").splitlines()


def _smallest_model() -> bytes:
    """An ONNX file of y = Relu(x), float32[1]."""
    from vit_edge.onnxfile import writer  # brings NumPy, maybe a broken one

    return writer.model([writer.node("Relu", ["x"], "y")], {"x": [1]}, {"y": [1]}, {})
