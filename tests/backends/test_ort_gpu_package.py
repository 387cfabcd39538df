"""The real onnxruntime-gpu: refusals where no GPU is, answers where one is."""

from __future__ import annotations

from importlib import metadata
from typing import Any

import numpy as np
import pytest

from tests.support.fake_onnxruntime import KNOWN, ONE_GPU
from tests.support.ort_placement import kernels_by_provider
from vit_edge.backends import ort
from vit_edge.backends.ort import libraries, providers
from vit_edge.bundle import Bundle
from vit_edge.errors import BackendError
from vit_edge.machine.cuda import gpus

requires = ("onnxruntime",)

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


@pytest.mark.usefixtures("no_gpu")
def test_without_a_gpu_the_driver_reason_is_the_error(
    testing_bundle: Bundle, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(BackendError, match="needs an NVIDIA GPU: "):
        ort.load(testing_bundle, provider="cuda")
    assert capfd.readouterr().out == ""


@pytest.mark.usefixtures("no_gpu")
def test_without_its_libraries_a_provider_is_an_error_that_names_them(
    testing_bundle: Bundle, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """As on a machine with a driver and nothing else."""
    monkeypatch.setattr(providers, "gpus", lambda: ONE_GPU)
    with pytest.raises(BackendError) as refused:
        ort.load(testing_bundle, provider="cuda")
    assert "libcublasLt.so." in str(refused.value)
    assert capfd.readouterr().out == ""


def test_the_options_that_are_told_are_in_the_provider() -> None:
    import onnxruntime

    code = libraries.provider_file(onnxruntime).read_bytes()
    absent = {name for name in KNOWN if name.encode() not in code}
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
    assert set(kernels_by_provider(testing_bundle, "cuda")) == {"CUDAExecutionProvider"}
