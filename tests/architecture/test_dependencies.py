"""What the package imports, pyproject.toml declares: for devices, and for the workshop."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.architecture import layers

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

# Where a distribution is not called what it is imported as.
IMPORTED_AS = {"pillow": "PIL", "onnxruntime-gpu": "onnxruntime"}
# Users do not install it: what only it declares, a user's environment may lack.
NOT_FOR_USERS = "dev"
# What is there where our code runs inside another program, and can be installed nowhere.
FROM_THE_HOST = {"triton_python_backend_utils"}


def imported_names(requirements: list[str]) -> set[str]:
    """The modules that requirements such as `onnx-ir>=0.1.14` bring."""
    names = {re.split(r"[^\w.-]", requirement, maxsplit=1)[0] for requirement in requirements}
    return {IMPORTED_AS.get(name, name.replace("-", "_")) for name in names}


def undeclared(root: Path, project: dict[str, Any]) -> list[str]:
    """The imports of other people's packages that no dependency or extra declares.

    The workshop is installed by the extra `export` alone, so that one must hold all it imports.
    """
    always = imported_names(project["dependencies"]) | {layers.PACKAGE} | FROM_THE_HOST
    extras = {
        extra: imported_names(requirements)
        for extra, requirements in project["optional-dependencies"].items()
        if extra != NOT_FOR_USERS
    }
    problems = []
    for item in layers.imports(root):
        top = item.imported.partition(".")[0]
        workshop = layers.room_of(item.module) in layers.WORKSHOP
        declared = extras["export"] if workshop else set().union(*extras.values())
        if top not in sys.stdlib_module_names and top not in always | declared:
            problems.append(f"{item.module}:{item.line} imports {top}, which nothing declares")
    return problems


@pytest.fixture
def project(repository: Path) -> dict[str, Any]:
    table: dict[str, Any] = tomllib.loads((repository / "pyproject.toml").read_text("utf-8"))
    return table["project"]  # type: ignore[no-any-return]


def test_all_that_the_package_imports_is_declared(
    repository: Path, project: dict[str, Any]
) -> None:
    if sys.version_info < (3, 11):  # tomllib is in the standard library from 3.11 on
        project["dependencies"].append("tomllib")
    assert undeclared(repository, project) == []


@pytest.mark.parametrize(
    ("module", "source", "caught"),
    [
        ("quantize/fp8.py", "import scipy", "scipy"),
        ("quantize/fp8.py", "def f():\n    from safetensors.numpy import save", "safetensors"),
        ("export/page.py", "import jinja2", "jinja2"),  # of an extra, but of another one
        ("bundle/files.py", "import ml_dtypes", "ml_dtypes"),
    ],
)
def test_an_undeclared_import_is_caught(
    tmp_path: Path, module: str, source: str, caught: str
) -> None:
    path = tmp_path / "vit_edge" / module
    path.parent.mkdir(parents=True)
    path.write_text(f"import json\nimport numpy\nfrom PIL import Image\n{source}")
    project = {
        "dependencies": ["numpy>=1.26", "pillow>=10.1"],
        "optional-dependencies": {
            "export": ["torch>=2.10", "onnx-ir"],
            "report": ["jinja2>=3.1"],
            "dev": ["safetensors>=0.5", "scipy"],
        },
    }
    (problem,) = undeclared(tmp_path, project)
    assert f"imports {caught}, " in problem


@pytest.mark.parametrize("python", ["310", "311", "312", "313"])
def test_what_export_needs_is_pinned(
    repository: Path, project: dict[str, Any], python: str
) -> None:
    pins = (repository / "constraints" / f"py{python}.txt").read_text("utf-8").splitlines()
    pinned = imported_names([line for line in pins if "==" in line])
    needed = imported_names(
        [
            requirement
            for requirement in project["optional-dependencies"]["export"]
            if "python_version" not in requirement
        ]
    )
    assert needed <= pinned
