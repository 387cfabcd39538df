"""Our reference in PyTorch, in the environment of vit_edge itself: on the CPU, and on a GPU."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Any

import process
from process import Model, Opened, Setup


def open_model(device: str, dtype: str, compiled: bool, folder: Path, threads: int) -> Opened:
    """The model in a data type; on a GPU a run goes from the host's memory to the host's memory.

    FP32 is without TF32. Compiled is the fastest that torch has: kernels picked by timing, and
    CUDA graphs.
    """
    import torch
    from safetensors.torch import load_file

    from vit_edge.models.vit import vit_from_weights
    from vit_edge.variants import variant

    torch.set_num_threads(threads)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    architecture = variant(Model.read(folder).variant).architecture
    number = getattr(torch, dtype)
    model: Any = vit_from_weights(architecture, load_file(folder / process.WEIGHTS))
    model = model.to(device, number).eval()
    if compiled:
        model = torch.compile(model, mode="max-autotune", dynamic=False)

    def prepare(pixels: Any) -> process.Run:
        given = torch.from_numpy(pixels)
        given = given.to(number) if device == "cpu" else given

        def run() -> Any:
            with torch.inference_mode():
                return model(given.to(device, number)).logits.float().cpu()

        return run

    facts = {"runtime": f"torch {torch.__version__}", "execution_precision": dtype}
    facts |= {"mode": "compiled" if compiled else "eager", "device": device}
    if device == "cuda":
        facts["provider"] = torch.cuda.get_device_name()
    return Opened(facts, prepare, lambda answer: answer.numpy())


def setups() -> dict[str, Setup]:
    rows = (
        ("eager-fp32", "cpu", "float32", False),
        ("eager-bf16", "cpu", "bfloat16", False),
        ("cuda-eager-fp32", "cuda", "float32", False),
        ("cuda-eager-fp16", "cuda", "float16", False),
        ("cuda-compiled-fp16", "cuda", "float16", True),
    )
    return {
        name: Setup(("torch",), partial(open_model, device, dtype, compiled))
        for name, device, dtype, compiled in rows
    }


if __name__ == "__main__":
    sys.exit(process.main(setups()))
