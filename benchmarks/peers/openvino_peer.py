"""OpenVINO on timm's export: float32, bfloat16, and NNCF's INT8 with either around it.

For latency; with streams a batch is answered image by image, by two streams at once.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Any

import cpu_models
import process
from process import Model, Opened, Setup


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


def open_model(file: str, precision: str, streams: int, folder: Path, threads: int) -> Opened:
    """A model compiled for each batch; the precision is set, bf16 is the default."""
    import numpy as np
    import openvino

    core = openvino.Core()
    properties = {
        "INFERENCE_PRECISION_HINT": precision,
        "PERFORMANCE_HINT": "LATENCY" if streams == 1 else "THROUGHPUT",
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": streams,
    }
    model = core.read_model(folder / file)
    compiled: dict[int, Any] = {}

    def prepare(pixels: Any) -> process.Run:
        parts = np.split(pixels, 1 if streams == 1 else len(pixels))
        size = len(parts[0])
        if size not in compiled:
            model.reshape({0: list(parts[0].shape)})
            compiled[size] = core.compile_model(model, "CPU", properties)
        requests = [compiled[size].create_infer_request() for _ in parts]

        def run() -> Any:
            for request, part in zip(requests, parts, strict=True):
                request.start_async({0: part}, share_inputs=True)
            for request in requests:
                request.wait()
            return [request.get_output_tensor(0) for request in requests]

        return run

    def logits(answer: Any) -> Any:
        return np.concatenate([tensor.data for tensor in answer])

    version = openvino.__version__.partition("-")[0]
    facts = {"runtime": f"openvino {version}", "execution_precision": precision}
    return Opened(facts | {"streams": str(streams)}, prepare, logits)


def setups() -> dict[str, Setup]:
    float_, int8 = cpu_models.FLOAT, cpu_models.NNCF
    rows = (
        ("fp32", float_, "f32", 1, export),
        ("bf16", float_, "bf16", 1, export),
        ("nncf-int8", int8, "f32", 1, quantize),
        ("nncf-int8-bf16", int8, "bf16", 1, quantize),
        ("nncf-int8-streams", int8, "f32", 2, quantize),
        ("nncf-int8-bf16-streams", int8, "bf16", 2, quantize),
    )
    return {
        name: Setup(
            ("openvino",),
            partial(open_model, file, precision, streams),
            make,
            file.replace(".xml", ".bin"),
        )
        for name, file, precision, streams, make in rows
    }


if __name__ == "__main__":
    sys.exit(process.main(setups()))
