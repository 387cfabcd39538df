"""What is shipped: the wheel, and what the repository may hold."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from vit_edge.bundle import Bundle

# Put together here, so that this file does not hold what it forbids.
MACHINE_PATHS = re.compile(
    r"(?<![\w.~-])/(" + "|".join(["root", "home/[a-z]", "Users/[A-Za-z]", "work"]) + ")/"
)
REGISTRIES = re.compile(r"\b(" + "|".join(["pypi", "pythonhosted", "download.pytorch"]) + r")\.org")
IMAGES = {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".heic", ".avif"}


@pytest.fixture(scope="module")
def tracked(repository: Path) -> list[Path]:
    """Every file under version control, or about to be."""
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=repository, capture_output=True, check=False,
    )  # fmt: skip
    if listing.returncode:
        pytest.skip("this is no git checkout")
    names = listing.stdout.decode().split("\0")
    return [repository / name for name in names if (repository / name).is_file()]


@pytest.fixture(scope="module")
def wheel(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built with the backend that is installed here."""
    for name in ("build", "hatchling"):
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None:  # the folder build/ of a checkout is a namespace
            pytest.skip(f"not installed: {name}")
    folder = tmp_path_factory.mktemp("dist")
    done = subprocess.run(
        [sys.executable, "-m", "build", "-w", "--no-isolation", "-o", folder, repository],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = folder.glob("*.whl")
    return path


def installed(folder: Path, *what: str) -> Path:
    """The python of a new environment with these in it, which is spared a pip of its own."""
    venv.create(folder, system_site_packages=False, symlinks=True, with_pip=False)
    python = folder / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet"]
    done = subprocess.run([*pip, *what], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return python


@pytest.mark.slow
def test_the_wheel_holds_the_package_its_data_and_the_recipes(
    wheel: Path, repository: Path
) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    shipped = {
        path.relative_to(repository).as_posix()
        for path in (repository / "vit_edge").rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    assert shipped <= names
    assert "vit_edge/py.typed" in shipped
    recipes = {path.name for path in (repository / "export").glob("*.toml")}
    assert recipes
    assert {f"vit_edge/recipes/{name}" for name in recipes} <= names


@pytest.mark.slow
def test_the_wheel_holds_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert {name.partition("/")[0].partition("-")[0] for name in names} == {"vit_edge"}
    assert not [name for name in names if "__pycache__" in name]
    assert wheel.stat().st_size < 20 << 20  # the checkpoint in fp16 is 7 MB


@pytest.mark.slow
def test_the_installed_wheel_imports_finds_its_data_and_has_a_console_script(
    wheel: Path, tmp_path: Path
) -> None:
    python = installed(tmp_path / "env", "--no-deps", "--no-index", str(wheel))
    code = (
        "import vit_edge, importlib.resources as r; f = r.files('vit_edge');"
        "assert 'site-packages' in vit_edge.__file__, vit_edge.__file__;"
        "print(len(list((f / 'data' / 'photos').iterdir())), (f / 'recipes').is_dir())"
    )
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [python, "-c", code],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["8", "True"]
    done = subprocess.run(
        [python.parent / "vit-edge", "--help"],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_the_wheel_predicts_where_only_numpy_pillow_and_onnxruntime_are(
    wheel: Path, tmp_path: Path, repository: Path, embedded_bundle: Bundle, photos: list[Path]
) -> None:
    minor = f"py{sys.version_info.major}{sys.version_info.minor}"
    pins = str(repository / "constraints" / f"{minor}.txt")
    python = installed(tmp_path / "env", "-c", pins, f"vit-edge[cpu] @ {wheel.as_uri()}")
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}

    def run(*arguments: str) -> str:
        done = subprocess.run(
            [python, *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    code = "import importlib.util as u; print([n for n in ('torch', 'onnx') if u.find_spec(n)])"
    assert run("-c", code).strip() == "[]"
    bundle = str(tmp_path / "bundle")
    shutil.copytree(embedded_bundle.path, bundle)
    run("-m", "vit_edge.build", bundle)
    assert "parity holds" in run("-m", "vit_edge.parity", bundle)
    cat = next(photo for photo in photos if photo.name == "cat.jpg")
    code = "from vit_edge import Predictor; print(Predictor('bundle').predict({!r}).label)"
    assert run("-c", code.format(str(cat))) == "cat\n"


def test_the_installed_metadata_has_the_packages_version() -> None:
    import vit_edge

    try:
        version = importlib.metadata.version("vit-edge")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("vit-edge is not installed here, only on the path")
    assert version == vit_edge.__version__


def test_every_python_has_its_pins_and_every_pin_is_exact(repository: Path) -> None:
    files = sorted(path.name for path in (repository / "constraints").glob("*.txt"))
    pythons = ["py310.txt", "py311.txt", "py312.txt", "py313.txt"]
    assert files == ["oldest.txt", *pythons, "serving.txt"]
    for name in files:
        lines = (repository / "constraints" / name).read_text().splitlines()
        pins = [line for line in lines if not line.startswith("#")]
        assert all(re.fullmatch(r"[a-z0-9-]+==[0-9][0-9a-z.]*", line) for line in pins), name
        assert pins == sorted(pins)


def test_the_oldest_pins_are_the_floors_of_the_ranges(repository: Path) -> None:
    pins = (repository / "constraints" / "oldest.txt").read_text()
    project = (repository / "pyproject.toml").read_text()
    for name in ("numpy", "pillow", "onnxruntime"):
        floor = re.search(rf'"{name}>=([\d.]+)"', project)
        assert floor is not None
        assert re.search(rf"^{name}=={re.escape(floor[1])}(\.0)?$", pins, re.MULTILINE), name


def test_no_file_names_a_machine_or_a_registry(tracked: list[Path]) -> None:
    found = []
    for path in tracked:
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        for pattern in (MACHINE_PATHS, REGISTRIES):
            found += [f"{path.name}: {match[0]}" for match in pattern.finditer(text)]
    assert found == []


def test_every_image_is_one_whose_licence_is_stated(tracked: list[Path], repository: Path) -> None:
    stated = set()
    for folder in ("vit_edge/data", "docs/pictures"):
        page = repository / folder / "README.md"
        names = (
            re.findall(r"`([\w/-]+\.(?:jpg|png|webp))`", page.read_text()) if page.exists() else []
        )
        stated |= {repository / folder / name for name in names}
    assert {path for path in tracked if path.suffix.lower() in IMAGES} == stated


def test_the_photos_are_small_and_carry_no_metadata(photos: list[Path], repository: Path) -> None:
    examples = sorted((repository / "vit_edge" / "data" / "examples").glob("*.jpg"))
    assert len(photos) == 8
    assert len(examples) == 5
    assert max(path.stat().st_size for path in examples) < 40_000
    assert sum(path.stat().st_size for path in photos) < 400_000
    for path in [*photos, *examples]:
        with Image.open(path) as image:
            assert image.format == "JPEG"
            assert max(image.size) <= 320
            assert not image.getexif()
