"""The notebooks in docs/: each runs from its first cell to its last, where its packages are."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

requires = ("torch", "onnx", "onnxruntime", "transformers")

NOTEBOOKS = Path(__file__).parents[2] / "docs" / "notebooks"
# What takes longest -> the same without the search for what loses least.
SHORTER = {
    'vit_edge.quantize(bundle, "int8", ': (
        "from vit_edge.export.recipe import find_recipe\n"
        "quick = ['rounding=nearest', 'insert_scales=false', 'ranges=minmax', 'smoothing=false']\n"
        "recipe = find_recipe('cpu-int8', None).changed(\n"
        "    quantization=quick, parity_target='top1_agreement=0.8')\n"
        "small = vit_edge.quantize(bundle, recipe=recipe, "
    )
}


def cells_of(path: Path) -> list[dict[str, Any]]:
    notebook = json.loads(path.read_text(encoding="utf-8"))
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    cells: list[dict[str, Any]] = notebook["cells"]
    return cells


@pytest.mark.parametrize("path", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda path: path.stem)
def test_a_notebook_is_one_and_holds_no_outputs(path: Path) -> None:
    cells = cells_of(path)
    assert len({cell["id"] for cell in cells}) == len(cells)
    assert cells[0]["source"][0].startswith("# ")
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert code
    for cell in code:
        assert (cell["outputs"], cell["execution_count"]) == ([], None)
        compile("".join(cell["source"]), str(path), "exec")


@pytest.mark.slow
def test_the_export_notebook_runs(tmp_path: Path) -> None:
    cells = cells_of(NOTEBOOKS / "export.ipynb")
    code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    for long, short in SHORTER.items():
        assert code.count(f"small = {long}") == 1
        code = code.replace(f"small = {long}", short)
    (tmp_path / "notebook.py").write_text(code, encoding="utf-8")
    command = [sys.executable, "-W", "error", "notebook.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[-1] == "pass"
    assert {line.split()[0] for line in lines if line.startswith(("fp32", "int8"))} == {
        "fp32", "int8"
    }  # fmt: skip
    assert sum(line.split(".jpg")[0] in line.split()[1:] for line in lines if ".jpg" in line) >= 4
