"""Who imports whom in the package, read from the source, and who may."""

from __future__ import annotations

import ast
import sys
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

PACKAGE = "vit_edge"

# room -> the rooms it may import, beside itself. A room is a folder or a module at the top of the
# package or, below backends, one runtime; "vit_edge" is the package's own face. The rows stand in
# the order of the house, from the ground up; docs/architecture.md draws them.
ROOMS: dict[str, set[str]] = {
    # nouns of the device: the standard library, numpy and pillow
    "errors": set(),
    "callables": {"errors"},
    "hub": {"errors"},
    "strict": {"errors"},
    "plugins": {"errors"},
    "machine": {"errors"},
    "onnxfile": {"errors"},
    "bundle": {"errors", "hub", "strict", "machine", "onnxfile"},
    "variants": {"errors", "bundle"},
    "images": {"errors", "bundle"},
    "backends": {"errors", "plugins", "machine", "bundle"},
    "answers": {"errors", "bundle"},
    "predictor": {"answers", "errors", "machine", "bundle", "images", "backends"},
    "kserve": {"errors", "bundle", "images", "backends"},
    # old names of modules that have moved, for a release
    "labelled": {"images"},
    "preprocess": {"images"},
    # the command lines: what they share, and the pages that two of them write
    "cli": {"errors", "backends"},
    "report": {"errors", "machine"},
    # verbs: each a command
    "predict": {"errors", "machine", "cli", "images", "predictor"},
    "__main__": {"cli", "predict"},
    "scale": {"errors", "machine", "bundle", "images", "predictor", "cli"},
    "triton": {"errors", "callables", "machine", "bundle", "images", "backends", "cli"},
    "push": {"errors", "callables", "hub", "bundle", "cli"},
    "verify": {"callables", "bundle", "cli"},
    "inspect": {"callables", "bundle", "cli", "onnxfile"},
    "parity": {
        "errors", "callables", "strict", "machine", "onnxfile", "bundle", "images", "backends",
        "predictor", "kserve", "cli", "report",
    },
    "probes": {"errors", "callables", "bundle", "images", "parity", "cli"},
    "evaluate": {
        "errors", "callables", "machine", "bundle", "images", "backends", "predictor", "parity",
        "cli",
    },
    "bench": {
        "errors", "callables", "strict", "machine", "bundle", "images", "backends", "predictor",
        "parity", "cli", "report",
    },
    "doctor": {
        "errors", "callables", "machine", "onnxfile", "bundle", "backends", "bench", "cli",
    },
    "build": {
        "errors", "callables", "plugins", "machine", "bundle", "backends", "parity", "bench", "cli",
    },
    "recommend": {
        "errors", "callables", "machine", "bundle", "backends", "parity", "bench", "build", "cli",
    },
    # runtimes: one each, and never each other
    "backends.ort": {"errors", "machine", "onnxfile", "bundle", "backends"},
    "backends.openvino": {"errors", "machine", "bundle", "backends"},
    "backends.trt": {"errors", "machine", "bundle", "backends"},
    "backends.eager": {"errors", "machine", "onnxfile", "bundle", "images", "backends", "models"},
    # the workshop: torch and onnx; nobody but backends.eager imports it
    "models": {"bundle"},
    "checkpoints": {"errors", "hub", "plugins", "bundle", "variants", "models"},
    "graphs": {"errors", "machine", "bundle", "parity"},
    "quantize": {"errors", "callables", "plugins", "cli", "bundle", "images", "parity", "graphs"},
    "export": {
        "errors", "callables", "machine", "onnxfile", "bundle", "variants", "images", "parity",
        "build", "backends.ort", "models", "checkpoints", "graphs", "quantize", "cli",
    },
}  # fmt: skip
RUNTIMES = {"backends.ort", "backends.openvino", "backends.trt", "backends.eager"}
WORKSHOP = {"models", "checkpoints", "graphs", "quantize", "export"}
# What rooms of the device import beside the standard library; everything else they find by name.
DEVICE_PACKAGES = {"numpy", "PIL", PACKAGE}
# What one of them imports beyond that: tables are its subject; Triton brings its own module.
FOREIGN = {("scale", "pyarrow"), ("triton", "triton_python_backend_utils")}
# pytest imports this one, nothing of ours does.
PYTEST_PLUGIN = f"{PACKAGE}.parity.pytest_plugin"


class Import(NamedTuple):
    """One module that another imports, as written on a line."""

    module: str
    imported: str
    line: int


def module_names(root: Path) -> dict[str, Path]:
    """Every module of the package below `root`, by dotted name."""
    found = {}
    for path in sorted((root / PACKAGE).rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def room_of(module: str) -> str:
    """The room a module belongs to: errors, bundle, backends.ort, ..."""
    parts = module.split(".")[1:]
    if not parts:
        return PACKAGE
    runtime = f"{parts[0]}.{parts[1]}" if len(parts) > 1 else ""
    return runtime if runtime in RUNTIMES else parts[0]


def imports(root: Path) -> Iterator[Import]:
    """Every import of every module, those inside functions too; not those for type checkers."""
    modules = module_names(root)
    for module, path in modules.items():
        for node in _running(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                yield from (Import(module, alias.name, node.lineno) for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                base = _absolute(module, path, node)
                for alias in node.names:
                    name = f"{base}.{alias.name}"
                    yield Import(module, name if name in modules else base, node.lineno)


def violations(root: Path) -> list[str]:
    """Every import that the table above does not allow."""
    found = []
    for item in imports(root):
        problem = _problem(item)
        if problem:
            found.append(f"{item.module}:{item.line} imports {item.imported}: {problem}")
    return found


def arrows(root: Path) -> set[tuple[str, str]]:
    """Which room imports which, itself and the package's face left out."""
    modules = module_names(root)
    pairs = {
        (room_of(item.module), room_of(item.imported))
        for item in imports(root)
        if item.imported in modules
    }
    return {(a, b) for a, b in pairs if a != b and PACKAGE not in (a, b)}


def floors(rooms: Mapping[str, Collection[str]]) -> dict[str, int]:
    """The floor of each room: one above the highest that it imports; the ground is 1.

    Raises:
        ValueError: Rooms import each other in a circle.
    """
    standing: dict[str, int] = {}
    while len(standing) < len(rooms):
        ready = {
            room: 1 + max((standing[below] for below in rooms[room]), default=0)
            for room in rooms
            if room not in standing and all(below in standing for below in rooms[room])
        }
        if not ready:
            raise ValueError(f"a circle among {', '.join(sorted(rooms.keys() - standing.keys()))}")
        standing |= ready
    return standing


def _problem(item: Import) -> str | None:
    room, top = room_of(item.module), item.imported.partition(".")[0]
    if (item.module, top) == (PYTEST_PLUGIN, "pytest"):
        return None
    if item.imported == PYTEST_PLUGIN:
        return "it belongs to pytest"
    if top != PACKAGE:
        foreign = top not in sys.stdlib_module_names and top not in DEVICE_PACKAGES
        free = room in RUNTIMES | WORKSHOP or (room, top) in FOREIGN
        return "a room of the device may not" if foreign and not free else None
    target = room_of(item.imported)
    if target in (room, PACKAGE):
        return _private(item)
    if room != PACKAGE and target not in ROOMS.get(room, set()):
        return f"{room} may not import {target}"
    return _private(item)


def _private(item: Import) -> str | None:
    """A module with an underscore belongs to its folder, and what lies below it."""
    folder, _, name = item.imported.rpartition(".")
    if not name.startswith("_") or name.startswith("__"):
        return None
    inside = item.module == folder or item.module.startswith(f"{folder}.")
    return None if inside else f"it is private to {folder}"


def _running(tree: ast.AST) -> Iterator[ast.AST]:
    """The nodes that run: all but the bodies of `if TYPE_CHECKING`."""
    for child in ast.iter_child_nodes(tree):
        if isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING"):
            for other in child.orelse:
                yield other
                yield from _running(other)
            continue
        yield child
        yield from _running(child)


def _absolute(module: str, path: Path, node: ast.ImportFrom) -> str:
    if not node.level:
        return node.module or ""
    package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    base = package[: len(package) - node.level + 1]
    return ".".join([*base, *([node.module] if node.module else [])])
