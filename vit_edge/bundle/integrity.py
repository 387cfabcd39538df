"""Check a bundle: every byte of it, and that its model is safe to hand to a runtime.

`ensure_verified` reads everything at the first load on a machine, and afterwards only looks whether
the files are still those (see trust.py).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from vit_edge.bundle import Bundle, trust
from vit_edge.bundle.bundle import LAYOUT_NAME, hashes_below
from vit_edge.errors import IntegrityError, ModelError

if TYPE_CHECKING:
    from vit_edge.onnxfile import ModelFacts

# What the newest runtime we know reads (onnxruntime 1.31: opset 26, IR 14); the bundle's own
# numbers are far below, and each backend refuses what its version cannot read.
MAX_OPSET = 26
MAX_IR_VERSION = 14


def ensure_verified(bundle: Bundle, *, full: bool = False) -> None:
    """Check the bundle's files, thoroughly the first time and cheaply from then on.

    Args:
        bundle: The bundle.
        full: Read every byte, whatever our record says.

    Raises:
        IntegrityError: A file is not what the manifest says.
        ModelError: The model file is unsafe, damaged, or holds NaN or Inf.
    """
    expected = {name: record.sha256 for name, record in bundle.manifest.files.items()}
    known = {} if full else trust.recorded_hashes(bundle.path)
    if all(known.get(name) == sha256 for name, sha256 in expected.items()):
        return
    found = trust.fingerprints(bundle.path, expected)
    changed = [
        f"{name}: sha256 {found[name].sha256[:16]}..., recorded {sha256[:16]}..."
        for name, sha256 in expected.items()
        if found[name].sha256 != sha256
    ]
    if changed:
        raise IntegrityError(
            f"{bundle.path}: {len(changed)} file(s) changed since they were written:\n  "
            + "\n  ".join(changed)
            + "\nCopy the bundle again, or export it again."
        )
    check_model(bundle)
    trust.record(bundle.path, found)


def layout_files(bundle: Bundle) -> list[Path] | None:
    """The files of the folder that others load, each as the export wrote it.

    Returns:
        None where they are of an export that recorded nothing: of 0.2 or before.

    Raises:
        IntegrityError: One was changed, added or removed.
    """
    folder = bundle.path / LAYOUT_NAME
    found = hashes_below(folder) if folder.is_dir() else {}
    recorded = bundle.parity().get("layout") if found else {}
    if not isinstance(recorded, dict):
        return None
    names = sorted(found.keys() | recorded.keys())
    if changed := [name for name in names if found.get(name) != recorded.get(name)]:
        raise IntegrityError(
            f"{folder}: not as it was written: {', '.join(changed)}. Remove the folder, or export "
            "the bundle again"
        )
    return [folder / name for name in names]


def check_model(bundle: Bundle) -> None:
    """Walk the ONNX file before any runtime parses it.

    Raises:
        ModelError: Damaged, unsafe external data, unknown operators, NaN or Inf, or tensors other
            than the manifest's; all mismatches are listed.
    """
    path, manifest = bundle.model_path, bundle.manifest
    facts = _checked(path)
    for other in (bundle.preprocess_path, bundle.end_to_end_path):
        if other is not None:
            _checked(other)
    places = {tensor.external.location for tensor in facts.tensors if tensor.external is not None}
    problems = [
        f"weights are in {place!r}, which the manifest does not list as part of the model"
        for place in sorted(places - set(bundle.model_files))
    ]
    initializers = {tensor.name for tensor in facts.initializers}
    inputs = {i.name: i for i in facts.inputs if i.name not in initializers}
    outputs = {output.name: output for output in facts.outputs}
    for kind, found, specs in (
        ("input", inputs, (manifest.input,)),
        ("output", outputs, manifest.outputs),
    ):
        names = [spec.name for spec in specs]
        if sorted(found) != sorted(names):
            problems.append(f"{kind}s are {sorted(found)}, the manifest says {sorted(names)}")
            continue
        for spec in specs:
            tensor = found[spec.name]
            if tensor.dtype != spec.dtype:
                problems.append(f"{kind} {spec.name} is {tensor.dtype}, not {spec.dtype}")
            shape = tensor.shape or ()
            if tuple(size if isinstance(size, int) else None for size in shape) != spec.shape:
                problems.append(f"{kind} {spec.name} is {list(shape)}, not {list(spec.shape)}")
    if problems:
        raise ModelError(f"{path}: {len(problems)} problem(s):\n  " + "\n  ".join(problems))


def _checked(path: Path) -> ModelFacts:
    """Read an ONNX file, and insist that a runtime may have it."""
    from vit_edge import onnxfile  # a start after the first reads none

    facts = onnxfile.read_model(path)
    onnxfile.check_external_data(path, facts)
    onnxfile.check_operators(facts, MAX_OPSET, MAX_IR_VERSION)
    onnxfile.check_finite(path, facts)
    return facts
