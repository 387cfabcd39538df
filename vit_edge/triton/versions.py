"""What becomes a version of a model: a bundle that Triton's backend can serve."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vit_edge import backends
from vit_edge.bundle import Bundle, engines
from vit_edge.bundle.integrity import ensure_verified
from vit_edge.errors import BackendError, EngineError, UsageError
from vit_edge.triton.config import FILES, RANKED, Backend

_NAME = re.compile(r"[A-Za-z0-9][\w.-]*", re.ASCII)  # it stands in a URL: /v2/models/NAME/infer
# What Triton's build of a runtime cannot be told, so that it would answer otherwise than ours.
_REFUSED: dict[tuple[str, str], str] = {
    ("onnxruntime", "bf16"): "its CPU provider has no BF16 MatMul",
    ("onnxruntime", "fp8"): "float8 needs a session option that Triton does not pass on",
}


@dataclass(frozen=True)
class Version:
    """A bundle, and the plan that was made of it where one is served."""

    bundle: Bundle
    engine: Path | None = None

    @property
    def files(self) -> dict[str, Path]:
        """What is copied as it is: name in the version's folder -> file."""
        if self.engine is not None:
            return {FILES["tensorrt"]: self.engine / FILES["tensorrt"]}
        return {name: self.bundle.path / name for name in self.bundle.model_files}

    @property
    def needed_bytes(self) -> int:
        """What a copy takes at most: a plan, or the whole bundle."""
        if self.engine is not None:
            return sum(file.stat().st_size for file in self.files.values())
        return sum(record.size for record in self.bundle.manifest.files.values())


def group_by_name(
    bundles: Sequence[Bundle], names: Sequence[str] | None
) -> dict[str, list[Bundle]]:
    """Group bundles by the name of the model that they are versions of.

    Raises:
        UsageError: No bundle; names that are none, or not one a bundle; two bundles of one name.
    """
    if not bundles:
        raise UsageError("name at least one bundle")
    if names is not None and (isinstance(names, str) or len(names) != len(bundles)):
        raise UsageError(f"--names {names!r}: give one name for each of the {len(bundles)} bundles")
    models: dict[str, list[Bundle]] = {}
    own = [bundle.path.resolve().name for bundle in bundles] if names is None else names
    for name, bundle in zip(own, bundles, strict=True):
        if not _NAME.fullmatch(name):
            raise UsageError(
                f"{name!r} is no name for a model, which stands in a URL: give another one with "
                "--names, of letters, digits, dots, dashes and underscores"
            )
        models.setdefault(name, []).append(bundle)
    for name, same in models.items():
        if names is None and len(same) > 1:
            raise UsageError(
                f"{' and '.join(str(bundle.path) for bundle in same)} have one name; give other "
                f"names with --names, or --names {','.join([name] * len(same))} to make them "
                "versions of one model"
            )
    return models


def prepare_version(backend: Backend, bundle: Bundle) -> Version:
    """Check that a backend serves a bundle, and find what it needs for that.

    Raises:
        BackendError: It does not, or this machine cannot tell.
        EngineError: There is no plan.
    """
    precision = bundle.manifest.precision
    if (backend, precision) in _REFUSED:
        raise BackendError(
            f"{bundle.path}: Triton's {backend} backend cannot serve {precision}: "
            f"{_REFUSED[backend, precision]}. Serve it with --backend python, or lower the "
            "precision otherwise"
        )
    names = {tensor.name for tensor in bundle.manifest.outputs}
    if backend == "python" and (both := names & set(RANKED)):
        raise BackendError(
            f"{bundle.path}: its output {sorted(both)[0]} has the name of one that the Python "
            "backend adds; serve it with another backend"
        )
    ensure_verified(bundle, full=True)
    if backend != "tensorrt":
        return Version(bundle)
    path, reason = backends.module("trt").find(bundle, None)
    if path is None:
        raise EngineError(f"{bundle.path}: {reason}")
    runtime = built_with(path).get("runtime", "")
    if not runtime.startswith("tensorrt "):
        raise BackendError(
            f"{path}: {runtime} made it, and Triton opens plans of TensorRT alone: install "
            "tensorrt, and build again"
        )
    return Version(bundle, path)


def built_with(engine: Path) -> dict[str, str]:
    """What an engine of ours depends on: the runtime, and options that are not the defaults."""
    parts: dict[str, str] = json.loads((engine / engines.RECORD_NAME).read_text())["key"]
    return parts


def shared_limits(name: str, versions: Sequence[Version], backend: Backend) -> tuple[int, int]:
    """The largest batch that every version takes, and how many profiles plans have.

    Raises:
        UsageError: The versions have not the same tensors and labels: one configuration is for all.
    """
    first, profiles = versions[0].bundle, [_profiles(version) for version in versions]
    for version in versions[1:]:
        other = version.bundle
        tensors = backend == "python" or other.manifest.input == first.manifest.input
        if not tensors or other.manifest.outputs != first.manifest.outputs:
            raise UsageError(
                f"{first.path} and {other.path} have other inputs or outputs, and versions of a "
                f"model share them: serve them as two models, with two --names instead of {name}"
            )
        if other.labels != first.labels:
            raise UsageError(
                f"{first.path} and {other.path} have other labels, and versions of a model share "
                f"them: serve them as two models, with two --names instead of {name}"
            )
    if len({len(sizes) for sizes in profiles}) > 1:
        raise UsageError(f"plans of {name} have different numbers of profiles; build them alike")
    return min(max(sizes) for sizes in profiles), len(profiles[0])


def _profiles(version: Version) -> list[int]:
    """The largest batch of each profile; of what is no plan, the bundle's."""
    most = version.bundle.manifest.max_batch
    text = "" if version.engine is None else built_with(version.engine).get("profiles", "")
    return [int(profile.split(",")[2]) for profile in text.split()] or [most]
