"""docker/cpu.Dockerfile followed in a fresh Debian, and what comes of it used, as its user."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.docker.image import Image, build, debian
from vit_edge.bundle import Bundle

requires = ("torch", "onnxruntime")

pytestmark = pytest.mark.slow

PHOTO = "/opt/vit-edge/lib/python3.11/site-packages/vit_edge/data/photos/cat.jpg"


def obstacle() -> str:
    """Why no root directory can be made and entered here; empty if it can."""
    if os.geteuid() != 0:
        return "chroot needs root"
    for command in ("debootstrap", "unshare"):
        if shutil.which(command) is None:
            return f"{command} is not installed: apt install {command}"
    done = subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False)
    return "mount namespaces are not permitted here" if done.returncode else ""


@pytest.fixture(scope="module")
def image(
    repository: Path, embedded_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory
) -> Image:
    """The image, with the embedded checkpoint's bundle in /bundles, which its user cannot write."""
    reason = obstacle()
    if reason:
        pytest.skip(f"{reason}; the image's steps are not proven here")
    folder = tmp_path_factory.mktemp("image")
    try:
        debian(folder / "debian")
    except subprocess.CalledProcessError as error:
        pytest.skip(f"debootstrap cannot make a Debian here: {error.stdout[-300:]}")
    made = build(repository / "docker" / "cpu.Dockerfile", repository, folder / "debian", folder)
    shutil.copytree(embedded_bundle.path, made.root / "bundles" / "cifar10")
    return made


def test_the_image_is_healthy(image: Image) -> None:
    assert image.run(image.healthcheck).stdout == "cifar10 answers: cat\n"


def test_it_predicts_as_a_user_other_than_root(image: Image) -> None:
    assert image.run(["id", "-u"]).stdout == "10001\n"
    done = image.run([*image.entrypoint, "predict", "/bundles/cifar10", PHOTO, "--json"])
    assert json.loads(done.stdout.splitlines()[0])["label"] == "cat"


def test_its_default_command_finds_the_bundle_running(image: Image) -> None:
    done = image.run([*image.entrypoint, *image.command, "--json"])
    (bundle,) = json.loads(done.stdout)["bundles"]
    assert bundle["backends"]["ort"]["facts"]["runs"]


def test_an_engine_goes_into_the_users_cache(image: Image) -> None:
    done = image.run([*image.entrypoint, "build", "/bundles/cifar10", "--json"])
    assert json.loads(done.stdout)["engine"].startswith("/var/cache/vit-edge/")


def test_a_broken_bundle_makes_it_unhealthy(image: Image) -> None:
    broken = image.root / "broken"
    shutil.copytree(image.root / "bundles", broken)
    (broken / "cifar10" / "model.onnx").unlink()
    done = image.run(["env", "VIT_EDGE_BUNDLES=/broken", *image.healthcheck], check=False)
    assert done.returncode == 1
    assert "model.onnx: missing" in done.stdout


@pytest.mark.parametrize("module", ["torch", "onnx", "pip", "hatchling"])
def test_what_only_the_workshop_needs_is_not_in_it(image: Image, module: str) -> None:
    done = image.run(["python", "-c", f"import {module}"], check=False)
    assert f"No module named '{module}'" in done.stderr


def test_its_user_can_write_nothing_of_the_program(image: Image) -> None:
    done = image.run(["find", "/opt", "/usr", "-writable", "-not", "-type", "l"])
    assert done.stdout == ""


def test_what_it_adds_to_its_base_is_small(image: Image) -> None:
    """177 MB when it was written: ONNX Runtime 75, NumPy 70, Pillow 20."""
    done = subprocess.run(
        ["du", "-sm", str(image.root / "opt")], capture_output=True, text=True, check=True
    )
    assert int(done.stdout.split()[0]) < 250
