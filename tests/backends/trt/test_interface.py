"""Every name of TensorRT's that the source uses exists in the versions it is used with."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

LISTINGS = Path(__file__).resolve().parents[2] / "data" / "tensorrt-api"
VERSIONS = ("tensorrt_10", "tensorrt_11", "tensorrt_rtx")
MODULE = "trt"  # what the injected module is called everywhere, and nothing else


class Use(NamedTuple):
    """One dotted name, such as trt.BuilderFlag.TF32, and whether a hasattr() guards it."""

    name: str
    line: int
    guarded: bool


@pytest.fixture(scope="module", params=VERSIONS)
def listing(request: pytest.FixtureRequest) -> Any:
    return json.loads((LISTINGS / f"{request.param}.json").read_text())


def sources(repository: Path) -> dict[str, str]:
    folder = repository / "vit_edge" / "backends" / "trt"
    return {path.name: path.read_text() for path in sorted(folder.glob("*.py"))}


def uses(source: str) -> Iterator[Use]:
    """Every trt.X and trt.X.Y of a source."""
    tree = ast.parse(source)
    parents = {child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}
    for node in ast.walk(tree):
        if not isinstance(node, ast.Attribute) or isinstance(parents[node], ast.Attribute):
            continue
        names = dotted(node)
        if names[:1] == [MODULE] and len(names) > 1:
            yield Use(".".join(names), node.lineno, guarded(node, names, parents))


def dotted(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Attribute):
        base = dotted(node.value)
        return [*base, node.attr] if base else []
    return [node.id] if isinstance(node, ast.Name) else []


def guarded(node: ast.AST, names: list[str], parents: dict[ast.AST, ast.AST]) -> bool:
    """Whether it stands in the body of an `if hasattr(trt, "X")`, or after `if not ...: raise`."""
    function: ast.AST = node
    while not isinstance(function, ast.FunctionDef | ast.Module):
        if isinstance(function, ast.If) and asks(function.test, names):
            return True
        function = parents[function]
    before = [s for s in function.body if isinstance(s, ast.If) and s.lineno < node.lineno]
    return any(
        isinstance(s.test, ast.UnaryOp)
        and isinstance(s.test.op, ast.Not)
        and asks(s.test.operand, names)
        and isinstance(s.body[-1], ast.Raise)
        for s in before
    )


def asks(test: ast.AST, names: list[str]) -> bool:
    return any(
        isinstance(call, ast.Call)
        and dotted(call.func) == ["hasattr"]
        and isinstance(call.args[1], ast.Constant)
        and [*dotted(call.args[0]), call.args[1].value] in (names[:2], names[:3])
        for call in ast.walk(test)
    )


def problem(use: Use, listing: Any) -> str | None:
    """Why a name is not there."""
    _, first, *rest = use.name.split(".")
    if use.guarded and first not in listing["module"]:
        return None
    if first != "__version__" and first not in listing["module"]:
        return f"{use.name}, line {use.line}: not in {listing['version']}"
    members = listing["enums"].get(first) or listing["classes"].get(first) or []
    if rest and rest[0] not in members and not rest[0].startswith("__"):
        return f"{use.name}, line {use.line}: not in {listing['version']}"
    return None


def test_every_name_exists_in_every_version_or_is_asked_for(repository: Path, listing: Any) -> None:
    found = [
        f"{name}: {what}"
        for name, source in sources(repository).items()
        for use in uses(source)
        if (what := problem(use, listing))
    ]
    assert found == []


def test_nothing_of_the_module_goes_by_another_name(repository: Path) -> None:
    """A name for a class, `pools = trt.MemoryPoolType`, would hide what is used of it."""
    for name, source in sources(repository).items():
        for node in ast.walk(ast.parse(source)):
            plain = isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
            if plain and len(dotted(node.value)) == 2 and dotted(node.value)[0] == MODULE:
                raise AssertionError(f"{name}:{node.lineno}: {ast.unparse(node)}")


def test_the_search_sees_the_source(repository: Path) -> None:
    found = {use.name for source in sources(repository).values() for use in uses(source)}
    assert {
        "trt.Builder", "trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED", "trt.Runtime",
        "trt.ExecutionContextAllocationStrategy.USER_MANAGED", "trt.ILogger.ERROR",
    } <= found  # fmt: skip
    assert len(found) > 20


PLANTED = {
    "trt.BuilderFlag.FP16": "def f(trt, config):\n    config.set_flag(trt.BuilderFlag.FP16)",
    "trt.IInt8EntropyCalibrator2": "def f(trt):\n    return trt.IInt8EntropyCalibrator2",
    "trt.Nonesuch": "def f(trt):\n    return trt.Nonesuch.X",
    "trt.CudaGraphStrategy": "def f(trt):\n    return trt.CudaGraphStrategy.DISABLED",
}


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_name_is_caught(name: str) -> None:
    for version in ("tensorrt_11",):
        listing = json.loads((LISTINGS / f"{version}.json").read_text())
        (use,) = uses(PLANTED[name])
        found = problem(use, listing)
        assert found is not None
        assert name in found


def test_a_guard_lets_through_what_it_asks_for_and_nothing_else() -> None:
    source = """
def f(trt):
    if hasattr(trt, "CudaGraphStrategy"):
        return trt.CudaGraphStrategy.DISABLED
    return trt.ComputeCapability.SM86
"""
    listing = json.loads((LISTINGS / "tensorrt_11.json").read_text())
    found = [use.name for use in uses(source) if problem(use, listing)]
    assert found == ["trt.ComputeCapability.SM86"]


def test_no_flag_is_a_number(repository: Path) -> None:
    """STRONGLY_TYPED is 1 in TensorRT 10 and 0 in 11."""
    for source in sources(repository).values():
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Call) and dotted(node.func)[-1:] in (
                ["create_network"], ["set_flag"], ["clear_flag"],
            ):  # fmt: skip
                assert not any(isinstance(argument, ast.Constant) for argument in node.args)


def test_methods_are_in_every_listing(repository: Path) -> None:
    """What is called on TensorRT's objects: any class of the listing must have it."""
    objects = {
        "builder", "network", "parser", "config", "profile", "engine", "context", "cache",
        "_runtime", "_engine", "layer",
    }  # fmt: skip
    found: set[str] = set()
    for source in sources(repository).values():
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Attribute):
                base = dotted(node.value)
                if base and base[-1] in objects and not node.attr.startswith("_"):
                    found.add(node.attr)
    for version in VERSIONS:
        listing = json.loads((LISTINGS / f"{version}.json").read_text())
        known = {member for members in listing["classes"].values() for member in members}
        ours = {
            "check", "layers", "profiles", "granted", "library", "close", "name", "context",
            "cuda_graph_strategy", "num_compute_capabilities", "set_compute_capability",
            "get", "parent", "is_dir", "items", "append", "most", "least", "glob",
        }  # fmt: skip
        assert found - known - ours == set(), version
