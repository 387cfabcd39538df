"""The real TensorRT on a real GPU, where there is one: what the fake stands in for elsewhere."""

from __future__ import annotations

import json
import threading
from typing import get_args

import numpy as np
import pytest

from tests.contracts.backend import check_contract
from vit_edge.backends import ort, trt
from vit_edge.backends.trt import library
from vit_edge.bundle import Bundle
from vit_edge.bundle.golden import Golden
from vit_edge.parity.compare import compare_answers
from vit_edge.parity.limits import limit_for

requires = ("torch", "onnx", "onnxscript", "onnxruntime")
pytestmark = [pytest.mark.gpu, pytest.mark.slow]


@pytest.fixture(params=get_args(library.Name))
def name(request: pytest.FixtureRequest) -> library.Name:
    """Each TensorRT that is installed."""
    wanted: library.Name = request.param
    if library.installed(wanted) is None:
        pytest.skip(f"{wanted} is not installed")
    return wanted


@pytest.fixture(scope="module", params=["fp32", "fp16"])
def gpu_bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    from vit_edge.export.__main__ import main

    availability = trt.available()
    if not availability.ok:
        pytest.skip(availability.reason)
    out = tmp_path_factory.mktemp("bundles") / request.param
    arguments = ["--checkpoint", "embedded", "--recipe", f"gpu-{request.param}"]
    if request.param != "fp32":
        arguments += ["--calibration", "random"]
    assert main([*arguments, "--out", str(out)]) == 0
    return Bundle.read(out)


def test_an_engine_answers_like_the_reference(name: library.Name, gpu_bundle: Bundle) -> None:
    engine = trt.build(gpu_bundle, library=name, profiles="1,1,4 1,8,32")
    assert sum(json.loads((engine / "plan.json").read_text())["precisions"].values()) > 0
    backend = trt.load(gpu_bundle, library=name, contexts=2)
    with Golden(gpu_bundle.golden_path) as golden:
        found = compare_answers(
            backend,
            golden,
            gpu_bundle.manifest,
            batches=[1, 2, 3, 32],
            limit=limit_for(gpu_bundle.manifest.precision),
        )
    assert found.problems == []
    backend.close()


def test_it_keeps_the_contract_from_many_threads(name: library.Name, gpu_bundle: Bundle) -> None:
    if gpu_bundle.manifest.precision == "fp32":
        trt.build(gpu_bundle, library=name)
        reference = ort.load(gpu_bundle)
        check_contract(trt.load(gpu_bundle, library=name), gpu_bundle.manifest, reference)
        reference.close()
    trt.build(gpu_bundle, library=name)
    backend = trt.load(gpu_bundle, library=name, contexts=2)
    shape = [4, *(size or 0 for size in gpu_bundle.manifest.input.shape[1:])]
    batches = [np.random.default_rng(n).standard_normal(shape).astype(np.float32) for n in range(4)]
    expected = [backend.run(batch)["logits"] for batch in batches]
    wrong = []

    def work(index: int) -> None:
        for _ in range(50):
            if not np.array_equal(backend.run(batches[index])["logits"], expected[index]):
                wrong.append(index)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    backend.close()
    assert wrong == []
