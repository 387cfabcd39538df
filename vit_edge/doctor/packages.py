"""Installed packages: Python's distributions, Debian's packages, and shared libraries."""

from __future__ import annotations

import re
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

from vit_edge.machine.cgroups import read

# Where NVIDIA's packages and installers put libraries: Debian's multiarch, JetPack and the toolkit.
_LIBRARY_FOLDERS = (
    "usr/lib/*-linux-gnu",
    "usr/lib/*-linux-gnu/nvidia",
    "usr/lib64",
    "usr/local/cuda/lib64",
    "usr/local/cuda/targets/*/lib",
)


def pip_packages() -> dict[str, str]:
    """Every Python distribution on the path and its version, by its name in lower case.

    One whose metadata is broken is left out.
    """
    versions: dict[str, str] = {}
    for distribution in metadata.distributions():
        try:
            name, version = distribution.metadata["Name"], distribution.version
        except Exception:  # a half-removed package: any file of it may be absent or damaged
            continue
        if name and version:
            versions.setdefault(re.sub(r"[-_.]+", "-", name).lower(), version)  # PEP 503
    return versions


def apt_packages(root: Path) -> dict[str, str]:
    """Debian's installed packages and their versions, read off dpkg's own record."""
    versions = {}
    for entry in read(root / "var/lib/dpkg/status").split("\n\n"):
        fields = dict(re.findall(r"^(Package|Status|Version): (.*)$", entry, re.MULTILINE))
        if fields.get("Status", "").endswith(" installed") and "Package" in fields:
            versions[fields["Package"]] = fields.get("Version", "")
    return versions


def library_versions(root: Path, names: Iterable[str]) -> dict[str, str]:
    """The newest libNAME.so.VERSION of each name; one that is nowhere is left out."""
    newest = {}
    for name in names:
        pattern = re.compile(rf"lib{re.escape(name)}\.so\.(\d+(?:\.\d+)*)")
        versions = [
            match[1]
            for folder in _LIBRARY_FOLDERS
            for file in root.glob(f"{folder}/lib{name}.so.*")
            if (match := pattern.fullmatch(file.name))
        ]
        if versions:
            newest[name] = max(versions, key=lambda text: [int(part) for part in text.split(".")])
    return newest
