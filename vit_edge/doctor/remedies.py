"""What to install or run, given what was found."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from vit_edge.doctor.bundles import Examined
from vit_edge.doctor.findings import Finding

# What TensorRT-RTX 1.7 was seen to build for: not Orin (8.7), not H100 and H200 (9.0).
_RTX_CAPABILITIES = {(7, 5), (8, 0), (8, 6), (8, 9), (12, 0), (12, 1)}


class Remedy(NamedTuple):
    """What for, and the command to type."""

    purpose: str
    command: str


def remedies(found: Mapping[str, Finding], bundles: Sequence[Examined]) -> list[Remedy]:
    """What would help here; empty if everything that can run does.

    Args:
        found: The findings by the names of their probes; one that is not there is not held
            against anybody.
        bundles: Those that were examined.
    """
    return [*_python(found), *_runtimes(found), *_nvidia(found), *_for_bundles(bundles)]


def _python(found: Mapping[str, Finding]) -> Iterator[Remedy]:
    if _mark(found, "foundation") == "trouble":
        yield Remedy(
            "NumPy and Pillow, which everything needs",
            'pip install --force-reinstall "numpy>=1.26" "pillow>=10.1"',
        )


def _runtimes(found: Mapping[str, Finding]) -> Iterator[Remedy]:
    extra = "gpu" if _gpus(found) and not _jetson(found) else "cpu"
    packages = _facts(found, "ONNX Runtime").get("packages", {})
    if len(packages) > 1:
        yield Remedy(
            "one ONNX Runtime instead of several over each other",
            f'pip uninstall -y {" ".join(packages)} && pip install "vit-edge[{extra}]"',
        )
    elif _mark(found, "ONNX Runtime") == "absent":
        yield Remedy("ONNX Runtime, which runs everywhere", f'pip install "vit-edge[{extra}]"')
    elif extra == "gpu" and "CUDAExecutionProvider" not in _providers(found):
        yield Remedy(
            "ONNX Runtime on the GPU, with the CUDA and cuDNN it needs",
            'pip uninstall -y onnxruntime && pip install "onnxruntime-gpu[cuda,cudnn]"',
        )
    if _mark(found, "OpenVINO") == "absent" and not _jetson(found):
        yield Remedy(
            "OpenVINO: often the fastest on CPUs for batches", 'pip install "vit-edge[openvino]"'
        )


def _nvidia(found: Mapping[str, Finding]) -> Iterator[Remedy]:
    if _mark(found, "driver") == "trouble":
        yield Remedy(
            "the NVIDIA driver (Ubuntu; Debian: nvidia-driver)", "sudo ubuntu-drivers install"
        )
    if _mark(found, "TensorRT") != "absent" or not (_gpus(found) or _jetson(found)):
        return
    if _jetson(found):
        yield Remedy("TensorRT, which is part of JetPack", "sudo apt install python3-libnvinfer")
    else:
        yield Remedy(
            "TensorRT, once NVIDIA's CUDA repository is among apt's sources",
            "sudo apt install python3-libnvinfer",
        )
    if _facts(found, "Python").get("venv"):
        yield Remedy(
            "an environment that sees apt's TensorRT",
            "python3 -m venv --system-site-packages .venv",
        )
    capabilities = {tuple(one["compute_capability"]) for one in _gpus(found)}
    if capabilities & _RTX_CAPABILITIES and _mark(found, "TensorRT-RTX") == "absent":
        yield Remedy("TensorRT-RTX instead, without apt", "pip install tensorrt-rtx-cu13")


def _for_bundles(bundles: Sequence[Examined]) -> Iterator[Remedy]:
    for bundle in bundles:
        running = [finding for finding in bundle.answers.values() if finding.mark == "ok"]
        if running and not bundle.tuned_for:
            yield Remedy(
                f"the fastest way to run {bundle.path.name} here",
                f"python -m vit_edge.build {bundle.path} --tune",
            )


def _facts(found: Mapping[str, Finding], name: str) -> Mapping[str, Any]:
    return found[name].facts if name in found else {}


def _mark(found: Mapping[str, Finding], name: str) -> str:
    """The mark; what could not be found out, or was not looked at, is no reason to act."""
    return found[name].mark if name in found and "error" not in found[name].facts else ""


def _jetson(found: Mapping[str, Finding]) -> bool:
    return bool(_facts(found, "board").get("jetson"))


def _gpus(found: Mapping[str, Finding]) -> Sequence[Mapping[str, Any]]:
    listed: Sequence[Mapping[str, Any]] = _facts(found, "GPU").get("gpus", ())
    return listed


def _providers(found: Mapping[str, Finding]) -> Sequence[str]:
    listed: Sequence[str] = _facts(found, "ONNX Runtime").get("providers", ())
    return listed
