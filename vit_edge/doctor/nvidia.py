"""Probes: NVIDIA's driver, GPUs and libraries."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from pathlib import Path

from vit_edge.doctor.findings import Finding, Mark
from vit_edge.doctor.packages import apt_packages, library_versions, pip_packages
from vit_edge.machine import cuda
from vit_edge.machine.cgroups import read

_LIBRARIES = ("cudart", "cublas", "cudnn", "nvinfer", "nvonnxparser")
_CONTAINER = "in a container: docker run --gpus all (--runtime nvidia on a Jetson)"
# CUDA 13's packages lost the suffix that CUDA 12's have: nvidia-cudnn-cu12, nvidia-cublas.
_WHEEL = re.compile(r"nvidia-(cuda-runtime|cublas|cudnn|cuda-nvrtc|cufft|curand)(-cu\d+)?")


def driver(root: Path) -> Finding:
    """The kernel driver's version, read off the kernel."""
    version = cuda.kernel_driver(root)
    if version:
        return Finding("ok", version, {"version": version})
    devices = _pci_devices(root)
    if devices:
        return Finding("trouble", f"{devices} NVIDIA device(s) on the PCI bus, no driver loaded")
    return Finding("absent", "no NVIDIA device on the PCI bus, no driver loaded")


def gpus(root: Path) -> Finding:
    """The GPUs, asked through libcuda: to be run in a child."""
    seen = cuda.gpus()
    facts = {"cuda": seen.cuda, "gpus": [asdict(one) for one in seen.found]}
    if seen.cuda is None and driver(root).mark == "ok":
        text = f"the kernel has the driver, this environment has not ({seen.reason}); {_CONTAINER}"
        return Finding("trouble", text, facts)
    mark: Mark = "ok" if seen.found else "absent" if seen.cuda is None else "trouble"
    return Finding(mark, seen.text, facts)


def cuda_libraries(root: Path) -> Finding:
    """CUDA, cuDNN and TensorRT: the toolkit, and libraries by apt or pip."""
    toolkit = _toolkit(root)
    libraries = library_versions(root, _LIBRARIES)
    wheels = {name: v for name, v in sorted(pip_packages().items()) if _WHEEL.fullmatch(name)}
    words = [f"toolkit {toolkit}"] if toolkit else []
    words += [f"lib{name} {version}" for name, version in libraries.items()]
    words += [f"{name} {version} (pip)" for name, version in wheels.items()]
    facts = {"toolkit": toolkit, "libraries": libraries, "wheels": wheels}
    if not words:
        return Finding("absent", "none of CUDA's libraries found", facts)
    return Finding("ok", ", ".join(words), facts)


def tensorrt_packages(root: Path) -> Finding:
    """TensorRT as apt knows it; its Python module is looked at where it is imported."""
    packages = apt_packages(root)
    tensorrt = {
        name: version
        for name, version in sorted(packages.items())
        if re.fullmatch(r"(tensorrt|libnvinfer\d+|python3-libnvinfer)", name)
    }
    if not tensorrt:
        return Finding("absent", "no TensorRT among apt's packages", {"packages": {}})
    text = ", ".join(f"{name} {version}" for name, version in tensorrt.items())
    return Finding("ok", text, {"packages": tensorrt})


def _pci_devices(root: Path) -> int:
    """Display controllers (PCI class 03) of the vendor 10de."""
    folders = root.glob("sys/bus/pci/devices/*")
    return sum(
        read(folder / "vendor").strip() == "0x10de" and read(folder / "class").startswith("0x03")
        for folder in folders
    )


def _toolkit(root: Path) -> str | None:
    """The version that an installed CUDA toolkit tells of itself."""
    try:
        version = json.loads(read(root / "usr/local/cuda/version.json"))["cuda"]["version"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return version if isinstance(version, str) else None
