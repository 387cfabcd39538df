"""timm's model in PyTorch: eager and compiled, float32 and bfloat16."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Any

import process
from cpu_models import timm_model
from process import Model, Opened, Setup


def open_model(dtype: str, compiled: bool, folder: Path, threads: int) -> Opened:
    """The model in a data type; torch.compile compiles for the first shape it meets."""
    import torch

    torch.set_num_threads(threads)
    name = Model.read(folder).timm
    if name is None:
        raise SystemExit("timm has no such model")
    number = getattr(torch, dtype)
    model: Any = timm_model(name, folder / process.WEIGHTS).to(number)
    if compiled:
        model = torch.compile(model)

    def prepare(pixels: Any) -> process.Run:
        given = torch.from_numpy(pixels).to(number)

        def run() -> Any:
            with torch.inference_mode():
                return model(given)

        return run

    facts = {"runtime": f"torch {torch.__version__}", "execution_precision": dtype}
    facts["mode"] = "compiled" if compiled else "eager"
    return Opened(facts, prepare, lambda answer: answer.float().numpy())


def setups() -> dict[str, Setup]:
    return {
        f"{'compiled' if compiled else 'eager'}-{short}": Setup(
            ("torch", "timm"), partial(open_model, dtype, compiled)
        )
        for compiled in (False, True)
        for short, dtype in (("fp32", "float32"), ("bf16", "bfloat16"))
    }


if __name__ == "__main__":
    sys.exit(process.main(setups()))
