"""The things to install or run, given the findings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from vit_edge.doctor.bundles import Examined
from vit_edge.doctor.findings import Finding

# What TensorRT-RTX 1.7 was seen to build for: not Orin (8.7), not H100 and H200 (9.0).
_RTX_CAPABILITIES = {(7, 5), (8, 0), (8, 6), (8, 9), (12, 0), (12, 1)}


class Remedy(NamedTuple):
    """A purpose, and the command to type."""

    purpose: str
    command: str


def remedies(findings: Mapping[str, Finding], bundles: Sequence[Examined]) -> list[Remedy]:
    """List what would help here; empty if everything that can run does.

    Args:
        findings: The findings by the names of their probes. A probe that is not there leads to
            no remedy.
        bundles: Those that were examined.
    """
    return [*_python(findings), *_runtimes(findings), *_nvidia(findings), *_for_bundles(bundles)]


def _python(findings: Mapping[str, Finding]) -> Iterator[Remedy]:
    if _mark(findings, "foundation") == "trouble":
        yield Remedy(
            "NumPy and Pillow, which everything needs",
            'pip install --force-reinstall "numpy>=1.26" "pillow>=10.1"',
        )


def _runtimes(findings: Mapping[str, Finding]) -> Iterator[Remedy]:
    extra = "gpu" if _gpus(findings) and not _jetson(findings) else "cpu"
    packages = _facts(findings, "ONNX Runtime").get("packages", {})
    if len(packages) > 1:
        yield Remedy(
            "one ONNX Runtime instead of several over each other",
            f'pip uninstall -y {" ".join(packages)} && pip install "vit-edge[{extra}]"',
        )
    elif _mark(findings, "ONNX Runtime") == "absent":
        yield Remedy("ONNX Runtime, which runs everywhere", f'pip install "vit-edge[{extra}]"')
    elif extra == "gpu" and "CUDAExecutionProvider" not in _providers(findings):
        yield Remedy(
            "ONNX Runtime on the GPU, with the CUDA and cuDNN it needs",
            'pip uninstall -y onnxruntime && pip install "onnxruntime-gpu[cuda,cudnn]"',
        )
    if _mark(findings, "OpenVINO") == "absent" and not _jetson(findings):
        yield Remedy(
            "OpenVINO: often the fastest on CPUs for batches", 'pip install "vit-edge[openvino]"'
        )


def _nvidia(findings: Mapping[str, Finding]) -> Iterator[Remedy]:
    if _mark(findings, "driver") == "trouble":
        yield Remedy(
            "the NVIDIA driver (Ubuntu; Debian: nvidia-driver)", "sudo ubuntu-drivers install"
        )
    if _mark(findings, "TensorRT") != "absent" or not (_gpus(findings) or _jetson(findings)):
        return
    if _jetson(findings):
        yield Remedy("TensorRT, which is part of JetPack", "sudo apt install python3-libnvinfer")
    else:
        yield Remedy(
            "TensorRT, once NVIDIA's CUDA repository is among apt's sources",
            "sudo apt install python3-libnvinfer",
        )
    if _facts(findings, "Python").get("venv"):
        yield Remedy(
            "an environment that sees apt's TensorRT",
            "python3 -m venv --system-site-packages .venv",
        )
    capabilities = {tuple(one["compute_capability"]) for one in _gpus(findings)}
    if capabilities & _RTX_CAPABILITIES and _mark(findings, "TensorRT-RTX") == "absent":
        yield Remedy("TensorRT-RTX instead, without apt", "pip install tensorrt-rtx-cu13")


def _for_bundles(bundles: Sequence[Examined]) -> Iterator[Remedy]:
    for bundle in bundles:
        running = [finding for finding in bundle.answers.values() if finding.mark == "ok"]
        if running and not bundle.tuned_for:
            yield Remedy(
                f"the fastest way to run {bundle.path.name} here",
                f"vit-edge build {bundle.path} --tune",
            )


def _facts(findings: Mapping[str, Finding], name: str) -> Mapping[str, Any]:
    return findings[name].facts if name in findings else {}


def _mark(findings: Mapping[str, Finding], name: str) -> str:
    """The mark; what could not be found out, or was not looked at, is no reason to act."""
    return findings[name].mark if name in findings and "error" not in findings[name].facts else ""


def _jetson(findings: Mapping[str, Finding]) -> bool:
    return bool(_facts(findings, "board").get("jetson"))


def _gpus(findings: Mapping[str, Finding]) -> Sequence[Mapping[str, Any]]:
    listed: Sequence[Mapping[str, Any]] = _facts(findings, "GPU").get("gpus", ())
    return listed


def _providers(findings: Mapping[str, Finding]) -> Sequence[str]:
    listed: Sequence[str] = _facts(findings, "ONNX Runtime").get("providers", ())
    return listed
