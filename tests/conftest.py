"""What every test may use, and which test modules can run here at all."""

from __future__ import annotations

import ast
import importlib.util
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from tests.support import cpus, traces
from tests.support.bundles import TESTING, Exporter, base_export, exporter, shared_folder
from tests.support.dinov2 import make_dinov2
from tests.support.foreign import foreign_files
from vit_edge.bundle import Bundle

REPOSITORY = Path(__file__).resolve().parents[1]

# Random configurations, but the same ones every time: a red run can be repeated.
settings.register_profile("fixed", derandomize=True, deadline=None, database=None)
settings.load_profile("fixed")


@pytest.fixture(scope="session", autouse=True)
def a_home_of_its_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep records and caches out of the user's own directories."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(home / "state"))
        patch.setenv("XDG_CACHE_HOME", str(home / "cache"))
        yield


@pytest.fixture(scope="session", autouse=True)
def graphs_of_all_workers(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Let workers share what they trace."""
    traces.SHARED = shared_folder(tmp_path_factory, "traces")


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the checkout."""
    return REPOSITORY


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder with trained checkpoints and images that lies beside the checkout in CI."""
    folder = os.environ.get("VIT_EDGE_TEST_DATA")
    if not folder:
        pytest.skip("VIT_EDGE_TEST_DATA is not set: it names the folder with the test data")
    if not Path(folder).is_dir():
        pytest.fail(f"VIT_EDGE_TEST_DATA is {folder!r}, which is no directory")
    return Path(folder)


@pytest.fixture(scope="session")
def dinov2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of Hugging Face's with a trained DINOv2; skips where its weights are not reached."""
    return make_dinov2(tmp_path_factory.mktemp("dinov2"))


@pytest.fixture(scope="session")
def photos() -> list[Path]:
    """The photos that the package carries."""
    return sorted((REPOSITORY / "vit_edge" / "data" / "photos").glob("*.jpg"))


@pytest.fixture
def labelled_noise(tmp_path: Path) -> Path:
    """Two images of noise in each of cat/ and dog/, classes of the embedded model, named alike."""
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(0)
    for label in ("cat", "dog"):
        (tmp_path / "noise" / label).mkdir(parents=True)
        for name in ("0000.png", "0001.png"):
            image = Image.fromarray(rng.integers(0, 256, (40, 40, 3), np.uint8))
            image.save(tmp_path / "noise" / label / name)
    return tmp_path / "noise"


def missing_requirements(source: str) -> list[str]:
    """The packages that a test module asks for, by `requires = (...)`, and that are not here."""
    return [name for name in declared(ast.parse(source)) if not importlib.util.find_spec(name)]


def declared(module: ast.Module) -> Iterable[str]:
    """The strings of a top-level `requires = ("torch", "onnx")`."""
    for statement in module.body:
        if isinstance(statement, ast.Assign) and any(
            isinstance(target, ast.Name) and target.id == "requires" for target in statement.targets
        ):
            yield from ast.literal_eval(statement.value)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start with the longest where workers share the tests, or one works alone at the end."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        items.sort(
            key=lambda item: (not item.get_closest_marker("slow"), "stories" not in item.path.parts)
        )


# Fast tests of threads, of what a machine says of itself, and of runtimes have all CPUs.
ON_ALL_CPUS = {"backends", "bench", "contracts", "machine"}


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Keep a worker to its CPUs, except for tests that are about several."""
    parts = set(item.path.relative_to(REPOSITORY).parts)
    if ON_ALL_CPUS & parts and not item.get_closest_marker("slow"):
        cpus.take_every_cpu()
    yield
    cpus.take_share()


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Trace an architecture once a process, but for tests that are about tracing."""
    traces.patch_tracing(item.get_closest_marker("traced_anew") is not None)


class AbsentModule(pytest.Module):
    """A test module that is not imported, because what it requires is not installed."""

    missing: tuple[str, ...] = ()

    def collect(self) -> Iterable[pytest.Item | pytest.Collector]:
        """Skip, with the reason."""
        pytest.skip(
            f"{self.path.name}: not installed: {', '.join(self.missing)}", allow_module_level=True
        )


def pytest_pycollect_makemodule(
    module_path: Path, parent: pytest.Collector
) -> pytest.Module | None:
    """Skip a module before its imports run, where `requires` names an absent package."""
    missing = missing_requirements(module_path.read_text(encoding="utf-8"))
    if not missing:
        return None
    module = AbsentModule.from_parent(parent, path=module_path)
    module.missing = tuple(missing)
    return module


@pytest.fixture(scope="session")
def export_once(tmp_path_factory: pytest.TempPathFactory) -> Exporter:
    """`export_once("--variant", "testing", ...)`: a bundle that no test may change."""
    return exporter(tmp_path_factory)


@pytest.fixture(scope="session")
def testing_bundle(export_once: Exporter, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle of the testing variant with seeded weights, batches up to 4."""
    return ready_bundle("testing", tmp_path_factory) or export_once(*TESTING)


@pytest.fixture
def bundle(testing_bundle: Bundle, tmp_path: Path) -> Bundle:
    """The testing bundle in a folder of the test's own, to build in and to damage."""
    shutil.copytree(testing_bundle.path, tmp_path / "bundle")
    return Bundle.read(tmp_path / "bundle")


@pytest.fixture(scope="session")
def embedded_bundle(export_once: Exporter, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle of the checkpoint inside the package."""
    return ready_bundle("embedded", tmp_path_factory) or export_once("--checkpoint", "embedded")


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    """A bundle of base-patch16-224, and the memory that its export took, in bytes."""
    return base_export(tmp_path_factory)


def ready_bundle(name: str, factory: pytest.TempPathFactory) -> Bundle | None:
    """A copy of what an environment that can export has made for one that cannot."""
    folder = os.environ.get("VIT_EDGE_TEST_BUNDLES")
    if not folder:
        return None
    return Bundle.read(Path(shutil.copytree(Path(folder) / name, factory.mktemp("ready") / name)))


@pytest.fixture(scope="session")
def foreign_file(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """`FAMILY-EXPORTER-OPSET` -> an ONNX file of that kind."""
    shared = shared_folder(tmp_path_factory, "foreign")
    return foreign_files(shared or tmp_path_factory.mktemp("foreign"))
