"""Who imports whom in the package, read from the source, and who may (three rings, DESIGN)."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

PACKAGE = "vit_edge"

# part -> the parts it may import. A part is a folder of the package or, below backends, one
# runtime; all that is in none of these folders is the core. export is imported by nobody.
ALLOWED = {
    "core": {"core"},
    "models": {"core", "models"},
    "checkpoints": {"core", "models", "checkpoints"},
    "export": {"core", "models", "checkpoints", "export", "backends.*"},
    "backends.eager": {"core", "models", "backends.eager"},  # PyTorch, as a runtime: the exception
    "backends.*": {"core", "backends.itself"},
}
# What the core may import beside the standard library; everything else finds it by name.
CORE_PACKAGES = {"numpy", "PIL", PACKAGE}
# pytest imports this one, nothing of ours does.
PYTEST_PLUGIN = f"{PACKAGE}.parity.pytest_plugin"
# Core, but above the backends: a runtime that imported them would go in a circle.
ABOVE_RUNTIMES = {
    f"vit_edge.{name}"
    for name in (
        "predictor",
        "cli",
        "build",
        "precisions",
        "recommend",
        "tune",
        "tuned",
        "ways",
        "__main__",
    )
}


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


def part_of(module: str) -> str:
    """The part a module belongs to: core, models, backends.ort, ..."""
    parts = module.split(".")[1:]
    if parts[:1] == ["backends"] and len(parts) > 1:
        return f"backends.{parts[1]}"
    return parts[0] if parts and parts[0] in ALLOWED else "core"


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


def _problem(item: Import) -> str | None:
    part, top = part_of(item.module), item.imported.partition(".")[0]
    if (item.module, top) == (PYTEST_PLUGIN, "pytest"):
        return None
    if item.imported == PYTEST_PLUGIN:
        return "it belongs to pytest"
    if top != PACKAGE:
        foreign = top not in sys.stdlib_module_names and top not in CORE_PACKAGES
        return "the core may not" if part == "core" and foreign else None
    target = part_of(item.imported)
    allowed = ALLOWED.get(part, ALLOWED["backends.*"])
    if part.startswith("backends.") and item.imported in ABOVE_RUNTIMES:
        return "a runtime may not import what is built on runtimes"
    if target in allowed or (target == part and "backends.itself" in allowed):
        return None
    if target.startswith("backends.") and "backends.*" in allowed:
        return None
    return f"{part} may not import {target}"


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
