"""What a command line does, a function does: every way to import it calls, and types are told."""

from __future__ import annotations

import importlib
import inspect
import json
import pydoc
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import vit_edge
from tests.architecture.test_imports import BLOCKED, run
from vit_edge import Bundle, BundleError, MissingExtraError, UsageError, cli
from vit_edge.bundle.bundle import ENGINES_NAME

requires = ("onnxruntime",)

VERBS = (
    "bench", "build", "doctor", "evaluate", "export", "inspect", "parity", "probes", "quantize",
    "recommend", "triton", "verify",
)  # fmt: skip
LIGHT = tuple(verb for verb in VERBS if verb != "quantize")  # which needs the extra to be imported


@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_is_a_function_with_a_signature_and_help(verb: str) -> None:
    if verb not in LIGHT:
        pytest.importorskip("onnx_ir")
    function = getattr(vit_edge, verb)
    assert callable(function)
    assert function is importlib.import_module(f"vit_edge.{verb}")
    assert verb in vit_edge.__all__
    signature = inspect.signature(function)
    assert signature == inspect.signature(getattr(function, verb))
    assert "annotation" in dir(signature.parameters[next(iter(signature.parameters))])
    assert signature.return_annotation is not inspect.Signature.empty
    text = pydoc.plain(pydoc.render_doc(function))
    assert f"{verb}(" in text
    assert "Raises:" in text or "Returns:" in text


@pytest.mark.parametrize(
    "imported",
    [
        "import vit_edge; verify, verb = vit_edge.verify, vit_edge.build",
        "import vit_edge.verify, vit_edge.build; verify, verb = vit_edge.verify, vit_edge.build",
        "from vit_edge import verify, build as verb",
        "import vit_edge.build.__main__, vit_edge.verify as verify; verb = vit_edge.build",
        "from vit_edge.verify import verify; from vit_edge.build import build as verb",
    ],
)
def test_every_way_to_import_one_gives_what_is_called(imported: str) -> None:
    code = f"""{imported}
from vit_edge import BundleError, UsageError
wrong = {{BundleError: lambda: verify("nowhere"), UsageError: lambda: verb("b", backend="x")}}
for error, call in wrong.items():
    try:
        call()
    except error as caught:
        print(type(caught).__name__, caught)
"""
    printed = run(code)
    assert "BundleError nowhere: no such directory" in printed
    assert "UsageError no 'x' among the backends" in printed


def test_importing_the_package_imports_no_verb() -> None:
    loaded = json.loads(run("import sys, json, vit_edge; print(json.dumps(sorted(sys.modules)))"))
    ours = {name for name in loaded if name.startswith("vit_edge")}
    assert ours == {"vit_edge"}


def test_a_verb_is_imported_when_it_is_called() -> None:
    code = (
        "import sys, vit_edge, vit_edge.export, vit_edge.bench\n"
        "print(*[m for m in sys.modules if m.split('.')[0] in ('vit_edge', 'numpy', 'inspect')])"
    )
    loaded = set(run(code).split())
    assert "numpy" not in loaded
    assert "vit_edge.export.api" not in loaded


def test_without_the_extra_a_call_says_what_to_install() -> None:
    code = f"""{BLOCKED}
import vit_edge
for verb in (vit_edge.export, vit_edge.quantize):
    try:
        verb("embedded", out="x")
    except vit_edge.MissingExtraError as error:
        print(error)
"""
    lines = run(code).splitlines()
    assert len(lines) == 2
    assert all(line.endswith('pip install "vit-edge[export]"') for line in lines)
    assert issubclass(MissingExtraError, UsageError)


def test_errors_speak_of_keywords_and_not_of_options(testing_bundle: Bundle) -> None:
    with pytest.raises(UsageError, match=r"^stage nonsense: expected model, end-to-end$"):
        vit_edge.bench(testing_bundle, stage="nonsense")
    with pytest.raises(UsageError, match=r"^percentile must lie in 0\.5\.\.1, not 2$"):
        vit_edge.recommend(testing_bundle, percentile=2)
    with pytest.raises(UsageError, match="name it with against"):
        vit_edge.parity(testing_bundle, localize=True)


def test_what_a_command_says_keeps_its_options(
    testing_bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    code = cli.main(["bench", str(testing_bundle.path), "--stage", "nonsense"])
    assert code == 2
    assert "--stage nonsense: expected model" in capsys.readouterr().err


def test_results_are_typed_and_the_commands_json_is_theirs(
    bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    assert vit_edge.verify(bundle) is bundle
    described = vit_edge.inspect(bundle.path)
    assert cli.main(["inspect", str(bundle.path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(described.as_dict()))
    engine = vit_edge.build(bundle)
    assert engine.path.parent.name == ENGINES_NAME
    assert engine.size_bytes == sum(file.stat().st_size for file in engine.path.iterdir())
    assert (engine.bundle, engine.backend) == (bundle, "ort")
    assert vit_edge.inspect(bundle).engines == (engine.path.name,)


def test_parity_takes_names_as_text_or_listed(testing_bundle: Bundle) -> None:
    result = vit_edge.parity(testing_bundle, backend=["ort"], target="sqnr_centred_db=20")
    assert [(entry.name, entry.verdict) for entry in result.runs] == [("ort", "pass")]
    for asked in (["ort", "ort"], "ort,ort"):
        with pytest.raises(UsageError, match="ort is given twice"):
            vit_edge.parity(testing_bundle, backend=asked)
    with pytest.raises(UsageError, match="name at least one"):
        vit_edge.parity(testing_bundle, backend=[])
    with pytest.raises(UsageError, match=r"'12' is no size"):
        vit_edge.parity(testing_bundle, memory_limit="12")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda b: vit_edge.parity(b, target=0.99), "target must be such as"),
        (lambda b: vit_edge.parity(b, memory_limit=0), "memory_limit must be bytes or a size"),
        (lambda b: vit_edge.parity(b, memory_limit=1.5), "memory_limit must be bytes or a size"),
        (lambda b: vit_edge.tune([]), "name at least one bundle"),
        (lambda b: vit_edge.tune(b, batch=0), "batch"),
        (lambda b: vit_edge.recommend([]), "name at least one bundle"),
        (lambda b: vit_edge.recommend(b, target="nonsense=1"), "no statistic"),
        (lambda b: vit_edge.bench(), "^name bundles, or a suite$"),
        (lambda b: vit_edge.bench(b, batch=0), "at least one image"),
        (lambda b: vit_edge.bench(b, scenario="server"), "'server' is not one of"),
    ],
)
def test_what_means_nothing_is_refused_before_any_work(
    testing_bundle: Bundle, call: Callable[[Bundle], object], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        call(testing_bundle)


def test_an_evaluation_is_typed(testing_bundle: Bundle, photos: list[Path], tmp_path: Path) -> None:
    table = tmp_path / "labels.csv"
    table.write_text("path,label\n" + "".join(f"{p.name},{i}\n" for i, p in enumerate(photos[:4])))
    found = vit_edge.evaluate(
        testing_bundle, photos[0].parent, labels_from=table, against=testing_bundle
    )
    assert found.images == found.top1.images == 4
    assert found.top1.rate == found.top1.count / 4
    assert found.agreement is not None
    assert found.agreement.rate == 1
    assert found.top1_drop == 0
    assert found.unreadable == 0
    assert found.as_dict()["top1"]["count"] == found.top1.count
    with pytest.raises(BundleError):
        vit_edge.evaluate(tmp_path, photos[0].parent)


LIBRARIES = ("torch", "numpy", "onnx_ir", "PIL", "transformers")  # whose types take a minute
USER = """
import vit_edge
import vit_edge.export
from vit_edge import Bundle, export, quantize

first: Bundle = vit_edge.export("embedded", out="x", image_size=(32, 32))
second: Bundle = export("embedded", precision="int8", calibration="photos")
third: Bundle = quantize(second, "fp16")
size: int = vit_edge.build(first).size_bytes
rate: float | None = vit_edge.evaluate(first, "data").top1.rate
vit_edge.export("embedded", nonsense=1)  # type: ignore[call-arg]
vit_edge.parity(first, timeout_s="soon")  # type: ignore[arg-type]
"""


@pytest.mark.slow
def test_a_users_code_is_checked_against_the_types(tmp_path: Path) -> None:
    pytest.importorskip("mypy", reason="needs mypy")
    (tmp_path / "user.py").write_text(USER)
    libraries = "".join(f"[mypy-{name}.*]\nfollow_imports = skip\n" for name in LIBRARIES)
    (tmp_path / "mypy.ini").write_text(f"[mypy]\nstrict = True\n{libraries}")
    command = [sys.executable, "-m", "mypy", "--cache-dir", ".mypy_cache", "user.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
