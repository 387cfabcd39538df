"""The real onnxruntime-gpu: refusals where no GPU is, answers where one is."""

from __future__ import annotations

from importlib import metadata
from typing import Any

import numpy as np
import pytest

from tests.support.fake_onnxruntime import KNOWN, ONE_GPU
from vit_edge.backends import ort
from vit_edge.backends.ort import libraries, placement, providers
from vit_edge.backends.ort.use import PROVIDERS, Provider
from vit_edge.bundle import Bundle
from vit_edge.errors import BackendError
from vit_edge.machine.cuda import gpus

requires = ("onnxruntime",)

GPU_PROVIDERS: list[Provider] = ["cuda", "tensorrt"]
# float32 products are summed in another order there, over the depth of a small ViT.
ROUNDING = 1e-4


@pytest.fixture(autouse=True)
def package() -> None:
    try:
        metadata.version("onnxruntime-gpu")
    except metadata.PackageNotFoundError:
        pytest.skip("onnxruntime-gpu is not installed")


@pytest.fixture
def no_gpu() -> None:
    if gpus().found:
        pytest.skip("there is a GPU here")


@pytest.fixture
def real_gpu() -> None:
    here = gpus()
    if not here.found:
        pytest.skip(here.reason)


@pytest.mark.parametrize("provider", GPU_PROVIDERS)
@pytest.mark.usefixtures("no_gpu")
def test_without_a_gpu_the_driver_reason_is_the_error(
    testing_bundle: Bundle, provider: Provider, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(BackendError, match="needs an NVIDIA GPU: "):
        ort.load(testing_bundle, provider=provider)
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize("provider", GPU_PROVIDERS)
@pytest.mark.usefixtures("no_gpu")
def test_without_its_libraries_a_provider_is_an_error_that_names_them(
    testing_bundle: Bundle, provider: Provider, monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """As on a machine with a driver and nothing else."""
    monkeypatch.setattr(providers, "gpus", lambda: ONE_GPU)
    with pytest.raises(BackendError) as refused:
        ort.load(testing_bundle, provider=provider)
    wanted = "libcublasLt.so." if provider == "cuda" else "needs TensorRT 10 (libnvinfer.so.10"
    assert wanted in str(refused.value)
    assert capfd.readouterr().out == ""


@pytest.mark.usefixtures("no_gpu")
def test_tensorrt_refused_by_the_runtime_names_its_libraries(
    testing_bundle: Bundle, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(providers, "gpus", lambda: ONE_GPU)
    monkeypatch.setattr(libraries, "tensorrt_version", lambda _: "10.3.0")
    with pytest.raises(
        BackendError, match=r"cannot load its provider. Missing: .*libnvinfer\.so\.10"
    ):
        ort.load(testing_bundle, provider="tensorrt")
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize("provider", GPU_PROVIDERS)
def test_the_options_that_are_told_are_in_the_provider(provider: Provider) -> None:
    import onnxruntime

    code = libraries.provider_file(onnxruntime, provider).read_bytes()
    absent = {name for name in KNOWN[PROVIDERS[provider]] if name.encode() not in code}
    assert not absent


@pytest.mark.gpu
@pytest.mark.usefixtures("real_gpu")
@pytest.mark.parametrize("options", [{}, {"cuda_graph": True}])
def test_cuda_answers_like_the_cpu_and_runs_every_node(
    testing_bundle: Bundle, options: dict[str, Any]
) -> None:
    expected = ort.load(testing_bundle, engine="never")
    found = ort.load(testing_bundle, provider="cuda", **options)
    for batch in (1, 2, 4, 1, 2):
        shape: Any = (batch, *testing_bundle.manifest.input.shape[1:])
        pixels = np.random.default_rng(batch).standard_normal(shape).astype(np.float32)
        answers = found.run(pixels)
        for name, values in expected.run(pixels).items():
            assert np.abs(answers[name] - values).max() <= ROUNDING * np.abs(values).max()
    assert set(placement.node_providers(testing_bundle, "cuda")) == {"CUDAExecutionProvider"}


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.usefixtures("real_gpu")
def test_tensorrt_builds_a_plan_and_takes_it(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    import onnxruntime

    try:
        libraries.tensorrt_version(onnxruntime)
    except BackendError as error:
        pytest.skip(str(error))
    engine = ort.build(bundle, provider="tensorrt")
    found = ort.load(bundle, provider="tensorrt", engine="required")
    assert found.facts["engine"] == engine.name
    shape: Any = (1, *bundle.manifest.input.shape[1:])
    pixels = np.zeros(shape, np.float32)
    expected = ort.load(bundle, engine="never").run(pixels)["logits"]
    # with TensorFloat-32, which rounds factors to 10 bits
    assert np.abs(found.run(pixels)["logits"] - expected).max() <= 1e-2 * np.abs(expected).max()
