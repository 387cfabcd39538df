"""The TensorRT that is installed: the full one, or TensorRT-RTX, which shares its interface."""

from __future__ import annotations

import functools
import importlib
import importlib.util
from importlib import metadata
from typing import Any, Literal, NamedTuple, get_args

from vit_edge.backends import Availability
from vit_edge.errors import BackendError, UsageError
from vit_edge.machine.cuda import Gpu, gpus

Name = Literal["tensorrt", "tensorrt_rtx"]
MINIMUM_VERSION = (10, 3)  # of tensorrt: JetPack 6's; every tensorrt_rtx will do

# What brings the module: wheels, some for one CUDA version, and what apt installs on a Jetson.
_DISTRIBUTIONS: dict[Name, tuple[str, ...]] = {
    "tensorrt": ("tensorrt", "tensorrt-cu13", "tensorrt-cu12"),
    "tensorrt_rtx": ("tensorrt-rtx", "tensorrt-rtx-cu13", "tensorrt-rtx-cu12"),
}
_INSTALL = (
    "TensorRT is not installed. On a Jetson it comes with JetPack (apt install "
    "python3-libnvinfer; a venv needs --system-site-packages to see it); on other machines: pip "
    "install tensorrt, or tensorrt-rtx for GeForce RTX"
)


class Library(NamedTuple):
    """An imported TensorRT."""

    trt: Any  # the module
    name: Name
    version: str

    @property
    def label(self) -> str:
        """Name and version, as facts and keys have them."""
        return f"{self.name} {self.version}"


def installed(name: Name | None = None) -> Name | None:
    """The TensorRT that is installed, without importing it; the full one first. None: neither."""
    wanted = get_args(Name) if name is None else (name,)
    return next((candidate for candidate in wanted if _is_there(candidate)), None)


def available() -> Availability:
    """Say whether TensorRT and a GPU are here, without importing TensorRT."""
    name = installed()
    if name is None:
        return Availability(False, _INSTALL)
    try:
        version = installed_version(name)
    except BackendError as error:
        return Availability(False, str(error))
    if _too_old(name, version):
        oldest = ".".join(map(str, MINIMUM_VERSION))
        return Availability(False, f"{name} {version} is too old, {oldest} is needed")
    if reason := gpus().reason:
        return Availability(False, f"{name} {version} is installed, but there is {reason}")
    return Availability(True, f"{name} {version}")


@functools.cache
def installed_version(name: Name) -> str:
    """The version of a TensorRT, from its distribution; imported only where there is none."""
    for distribution in _DISTRIBUTIONS[name]:
        try:
            return metadata.version(distribution)
        except metadata.PackageNotFoundError:
            continue
    return str(_import(name).__version__)


def open_library(name: Name | None = None) -> Library:
    """Import TensorRT. Nothing that needs a GPU is touched.

    Args:
        name: One of the two; by default what is installed, the full one first.

    Raises:
        UsageError: No such library.
        BackendError: It is not installed, does not load, or is too old.
    """
    if name is not None and name not in get_args(Name):
        raise UsageError(f"no library {name!r}; there are: {', '.join(get_args(Name))}")
    chosen = installed(name)
    if chosen is None:
        raise BackendError(_INSTALL if name is None else f"{name} is not installed. {_INSTALL}")
    trt = _import(chosen)
    version = str(trt.__version__)
    if _too_old(chosen, version):
        oldest = ".".join(map(str, MINIMUM_VERSION))
        raise BackendError(f"{chosen} {version} is too old, {oldest} is needed")
    return Library(trt, chosen, version)


def the_gpu(index: int) -> Gpu:
    """One GPU. Asked before TensorRT is: without a driver that crashes instead of raising.

    Raises:
        BackendError: There is none, or not that one.
    """
    devices, _, reason = gpus()
    if not devices:
        raise BackendError(f"TensorRT needs an NVIDIA GPU, and there is {reason}")
    if not 0 <= index < len(devices):
        names = ", ".join(f"{gpu.index} ({gpu.name})" for gpu in devices)
        raise BackendError(f"there is no GPU {index}; there are: {names}")
    return devices[index]


def _is_there(name: Name) -> bool:
    """True if there is a package, and not just a folder of that name."""
    try:
        spec = importlib.util.find_spec(name)
    except ValueError:  # a module that was put together by hand
        return True
    return spec is not None and spec.origin is not None


def _import(name: Name) -> Any:
    try:
        trt = importlib.import_module(name)
        str(trt.__version__)
    except Exception as error:  # the libraries that it loads may be missing, or not fit
        raise BackendError(
            f"{name} is installed and does not load: {error}; install it anew"
        ) from error
    return trt


def _too_old(name: Name, version: str) -> bool:
    numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
    return name == "tensorrt" and numbers < MINIMUM_VERSION
