"""The suite itself: a device has few of the packages that its modules ask for."""

from __future__ import annotations

import ast
import fnmatch
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import declared

HERE = Path(__file__).parents[1]
ALWAYS = {"hypothesis", "onnxruntime"}  # with the oldest versions, too


@pytest.mark.slow
def test_without_the_packages_they_require_modules_are_skipped_and_none_fails_to_import() -> None:
    """`sys.modules[name] = None` is how Python itself marks what cannot be imported."""
    absent = {
        name
        for path in HERE.rglob("test_*.py")
        for name in declared(ast.parse(path.read_text(encoding="utf-8")))
    } - ALWAYS
    assert {"torch", "onnx", "openvino"} <= absent
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({sorted(absent)}))\n"
        "import pytest; sys.exit(pytest.main(['--collect-only', '-q', '-p', 'no:cacheprovider']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=HERE.parent
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]


def test_no_folder_of_tests_is_passed_over(request: pytest.FixtureRequest) -> None:
    """By default pytest does not look into folders named build or dist."""
    patterns = request.config.getini("norecursedirs")
    folders = {path.parent.name for path in HERE.rglob("test_*.py")}
    assert "build" in folders
    assert [name for name in folders for p in patterns if fnmatch.fnmatch(name, p)] == []


def test_the_readme_says_what_each_slow_test_is_for() -> None:
    table = (HERE / "README.md").read_text(encoding="utf-8").partition("slow test is for")[2]
    listed = set(re.findall(r"`(test_\w+)`", table)) | set(re.findall(r"\w+/test_\w+\.py", table))
    slow, modules = set(), set()
    for path in HERE.rglob("test_*.py"):
        module = ast.parse(path.read_text(encoding="utf-8"))
        name = f"{path.parent.name}/{path.name}"
        modules.add(name)
        for statement in module.body:
            if isinstance(statement, ast.Assign) and is_slow(statement.value):
                slow.add(name)  # pytestmark: all of its tests
            elif isinstance(statement, ast.FunctionDef):
                slow |= {statement.name for mark in statement.decorator_list if is_slow(mark)}
    headings = listed & modules - slow
    assert listed - headings == slow


def is_slow(mark: ast.expr) -> bool:
    return bool(re.search(r"\bmark\.(slow|browser)\b", ast.unparse(mark)))
