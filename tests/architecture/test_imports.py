"""The rooms hold: by the source, and by running the device's where nothing else is installed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.architecture import layers

WORKSHOP_AND_RUNTIMES = [
    "huggingface_hub", "jinja2", "matplotlib", "onnx", "onnx_ir", "onnxruntime", "onnxscript",
    "openvino", "polygraphy", "safetensors", "tensorrt", "tensorrt_rtx", "torch", "tqdm",
    "transformers",
]  # fmt: skip

BLOCKED = f"""
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {WORKSHOP_AND_RUNTIMES!r}:
            raise ModuleNotFoundError(f"{{name}} is blocked by a test", name=name)
sys.meta_path.insert(0, Blocker())
"""


def run(code: str) -> str:
    """Run code in a fresh Python, warnings as errors; return what it printed."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True, text=True, check=False, cwd=layers.__file__.rpartition("/tests/")[0],
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def device_modules(repository: Path) -> list[str]:
    workshop = layers.WORKSHOP | layers.RUNTIMES | {room for room, _ in layers.FOREIGN}
    return [m for m in layers.module_names(repository) if layers.room_of(m) not in workshop]


def test_every_import_of_the_package_is_allowed(repository: Path) -> None:
    assert layers.violations(repository) == []


def test_the_table_knows_every_room_and_every_row_is_needed(repository: Path) -> None:
    modules = layers.module_names(repository)
    rooms = {layers.room_of(module) for module in modules} - {layers.PACKAGE}
    assert rooms == set(layers.ROOMS)
    arrows = layers.arrows(repository)
    unused = {(a, b) for a, allowed in layers.ROOMS.items() for b in allowed} - arrows
    assert not unused, f"the table allows what nobody does: {sorted(unused)}"


def test_a_room_stands_above_all_that_it_imports() -> None:
    floors = layers.floors(layers.ROOMS)
    assert all(floors[a] > floors[b] for a, below in layers.ROOMS.items() for b in below)


def test_a_circle_is_found() -> None:
    with pytest.raises(ValueError, match=r"circle.*\ba\b"):
        layers.floors({"a": {"b"}, "b": {"c"}, "c": {"a"}})


def test_no_modules_import_each_other_in_a_circle(repository: Path) -> None:
    modules = layers.module_names(repository)
    faces = {name for name, path in modules.items() if path.name == "__init__.py"}
    imported: dict[str, set[str]] = {name: set() for name in modules}
    for item in layers.imports(repository):
        if item.imported in modules.keys() - faces and item.imported != item.module:
            imported[item.module].add(item.imported)
    layers.floors(imported)


def test_no_runtime_imports_another_and_nobody_imports_the_workshop() -> None:
    for room, allowed in layers.ROOMS.items():
        outside = room not in layers.WORKSHOP | {"backends.eager"}
        assert not (outside and allowed & layers.WORKSHOP), room
        assert "export" not in allowed
        assert not (room in layers.RUNTIMES and allowed & layers.RUNTIMES), room


def test_the_predictor_starts_with_what_it_needs() -> None:
    """What only a hub, a child process, a stream of images or a report needs is imported there."""
    loaded = json.loads(
        run(
            "import json, sys, numpy, PIL.Image\nbefore = set(sys.modules)\n"
            "from vit_edge import Predictor\nprint(json.dumps(sorted(set(sys.modules) - before)))"
        )
    )
    late = {"urllib.request", "http", "ssl", "email", "socket", "subprocess", "secrets", "glob"}
    assert not {"concurrent.futures", "ctypes", "multiprocessing", "asyncio"} & set(loaded)
    late |= {"vit_edge.hub", "vit_edge.onnxfile", "vit_edge.bundle.staging"}
    assert not late & set(loaded)
    assert len([name for name in loaded if name.startswith("vit_edge.")]) <= 30


@pytest.mark.parametrize(
    ("module", "source", "culprit"),
    [
        ("predictor.py", "import torch", "torch"),
        ("predictor.py", "def f():\n    import onnxruntime as ort", "onnxruntime"),
        ("predictor.py", "from onnx import helper", "onnx"),
        ("predictor.py", "from vit_edge.parity import compare", "vit_edge.parity.compare"),
        ("bundle/bundle.py", "from vit_edge.models import vit", "vit_edge.models.vit"),
        ("bundle/bundle.py", "from vit_edge.backends import ort", "vit_edge.backends.ort"),
        ("bundle/bundle.py", "from ..backends.ort import load", "vit_edge.backends.ort"),
        ("machine/cpus.py", "from vit_edge.bundle import bundle", "vit_edge.bundle.bundle"),
        ("parity/compare.py", "from ..export import pipeline", "vit_edge.export"),
        ("parity/compare.py", "import vit_edge.export", "vit_edge.export"),
        ("backends/__init__.py", "from . import ort", "vit_edge.backends.ort"),
        ("backends/__init__.py", "import tensorrt", "tensorrt"),
        ("backends/ort.py", "from vit_edge.backends import eager", "vit_edge.backends.eager"),
        ("backends/ort.py", "from vit_edge.models import vit", "vit_edge.models.vit"),
        ("backends/ort.py", "from vit_edge.predictor import Predictor", "vit_edge.predictor"),
        ("backends/trt/run.py", "from vit_edge.backends import ort", "vit_edge.backends.ort"),
        ("models/vit.py", "from vit_edge import checkpoints", "vit_edge.checkpoints"),
        ("checkpoints/hf.py", "import vit_edge.export.trace", "vit_edge.export.trace"),
        (
            "export/trace.py",
            "from vit_edge.checkpoints import _files",
            "vit_edge.checkpoints._files",
        ),
        ("backends/eager.py", "from vit_edge.export import trace", "vit_edge.export.trace"),
        ("predictor.py", "import pytest", "pytest"),
        (
            "parity/compare.py",
            "from vit_edge.parity import pytest_plugin",
            "vit_edge.parity.pytest_plugin",
        ),
        (
            "bundle/bundle.py",
            "import typing\nif typing.TYPE_CHECKING:\n    pass\nelse:\n    import torch",
            "torch",
        ),
    ],
)
def test_a_planted_import_is_caught(tmp_path: Path, module: str, source: str, culprit: str) -> None:
    plant(tmp_path, module, source)
    (found,) = layers.violations(tmp_path)
    assert f" imports {culprit}: " in found


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("parity/pytest_plugin.py", "import pytest"),
        ("predictor.py", "import numpy as np\nfrom PIL import Image\nimport json"),
        ("predictor.py", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch"),
        ("backends/eager.py", "import torch\nfrom vit_edge.models import vit"),
        ("backends/ort.py", "import onnxruntime\nfrom vit_edge import backends, bundle"),
        ("backends/trt/run.py", "from vit_edge.backends.trt import cudart"),
        ("checkpoints/hf.py", "from vit_edge.models import vit\nfrom . import _files"),
        (
            "export/pipeline.py",
            "from vit_edge import checkpoints\nfrom vit_edge.backends import ort",
        ),
    ],
)
def test_an_allowed_import_is_let_through(tmp_path: Path, module: str, source: str) -> None:
    plant(tmp_path, module, source)
    assert layers.violations(tmp_path) == []


def plant(root: Path, module: str, source: str) -> None:
    """A package like ours, with one module of interest."""
    for name in [
        "__init__.py", "bundle/__init__.py", "bundle/bundle.py", "predictor.py", "machine/cpus.py",
        "models/vit.py", "checkpoints/hf.py", "checkpoints/__init__.py", "checkpoints/_files.py",
        "export/__init__.py", "export/trace.py", "parity/compare.py",
        "backends/__init__.py", "backends/ort.py", "backends/eager.py",
        "backends/trt/__init__.py", "backends/trt/cudart.py", "parity/pytest_plugin.py", module,
    ]:  # fmt: skip
        path = root / "vit_edge" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source if name == module else "")


def test_the_core_and_its_public_names_import_without_workshop_and_runtimes(
    repository: Path,
) -> None:
    modules = [m for m in device_modules(repository) if not m.endswith("__main__")]
    code = f"""{BLOCKED}
import importlib
for name in {modules!r}:
    importlib.import_module(name)
import vit_edge
for name in vit_edge.__all__:
    getattr(vit_edge, name)
import vit_edge.parity.__main__
"""
    run(code)


def test_the_block_itself_works() -> None:
    code = (
        f"{BLOCKED}\ntry:\n    import torch\nexcept ModuleNotFoundError as error:\n    print(error)"
    )
    assert "torch is blocked by a test" in run(code)


def test_importing_the_package_loads_neither_numpy_nor_pillow() -> None:
    code = "import sys, json, vit_edge; print(json.dumps(sorted(sys.modules)))"
    loaded = {name.partition(".")[0] for name in json.loads(run(code))}
    assert not loaded & {"numpy", "PIL", *WORKSHOP_AND_RUNTIMES}


def test_the_public_names_are_sorted_and_all_there() -> None:
    import vit_edge

    assert list(vit_edge.__all__) == sorted(vit_edge.__all__)
    assert set(vit_edge.__all__) <= set(dir(vit_edge))
    with pytest.raises(AttributeError):
        vit_edge.nonesuch  # noqa: B018


@pytest.mark.parametrize("collects", [True, False])
@pytest.mark.parametrize("name", ["Predictor", "UsageError", "export"])
def test_garbage_is_not_looked_for_while_a_public_name_loads(name: str, collects: bool) -> None:
    code = f"""
import gc, importlib, sys
import vit_edge
class Witness:
    seen = set()
    def find_spec(self, name, path=None, target=None):
        self.seen.add(gc.isenabled())
sys.meta_path.insert(0, Witness())
{"" if collects else "gc.disable()"}
getattr(vit_edge, {name!r})
print(Witness.seen, gc.isenabled())
"""
    assert run(code).strip() == f"{{False}} {collects}"


def test_garbage_is_looked_for_again_after_a_name_that_does_not_load() -> None:
    code = """
import gc, sys
import vit_edge
sys.modules["vit_edge.predictor"] = None
try:
    vit_edge.Predictor
except ImportError:
    print(gc.isenabled())
"""
    assert run(code).strip() == "True"
