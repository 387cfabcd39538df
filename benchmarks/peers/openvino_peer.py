"""OpenVINO on timm's export: float32, bfloat16, and NNCF's INT8 with either around it."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Any

import cpu_models
import process
from process import Model, Opened, Way


def export(folder: Path) -> None:
    """timm's model through TorchScript's exporter; see cpu_models.py."""
    name = Model.read(folder).timm
    if name is None:
        raise SystemExit("timm has no such model")
    cpu_models.export(folder, name)


def quantize(folder: Path) -> None:
    """NNCF's transformer preset, calibrated on the pixels of the folder."""
    export(folder)
    cpu_models.nncf_int8(folder)


def open_model(file: str, precision: str, folder: Path, threads: int) -> Opened:
    """A model for latency, compiled for each batch; the precision is set, bf16 is the default."""
    import openvino

    core = openvino.Core()
    properties = {
        "INFERENCE_PRECISION_HINT": precision,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads,
    }
    model = core.read_model(folder / file)
    requests: dict[int, Any] = {}

    def prepare(pixels: Any) -> process.Run:
        if len(pixels) not in requests:
            model.reshape({0: list(pixels.shape)})
            compiled = core.compile_model(model, "CPU", properties)
            requests[len(pixels)] = compiled.create_infer_request()
        request = requests[len(pixels)]

        def run() -> Any:
            request.infer({0: pixels}, share_inputs=True)
            return request.get_output_tensor(0)

        return run

    version = openvino.__version__.partition("-")[0]
    facts = {"runtime": f"openvino {version}", "execution_precision": precision}
    return Opened(facts, prepare, lambda answer: answer.data.copy())


def ways() -> dict[str, Way]:
    float_, int8 = cpu_models.FLOAT, cpu_models.NNCF
    rows = (
        ("fp32", float_, "f32", export),
        ("bf16", float_, "bf16", export),
        ("nncf-int8", int8, "f32", quantize),
        ("nncf-int8-bf16", int8, "bf16", quantize),
    )
    return {
        name: Way(
            ("openvino",), partial(open_model, file, precision), make, file.replace(".xml", ".bin")
        )
        for name, file, precision, make in rows
    }


if __name__ == "__main__":
    sys.exit(process.main(ways()))
