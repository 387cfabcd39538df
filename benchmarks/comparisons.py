"""What competitors.py compares, as data: whose models, which of ours, and the bars."""

from __future__ import annotations

import fnmatch
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from timing import ratio

from vit_edge import cli
from vit_edge.backends import Option, name_of
from vit_edge.bench.results.compare import compared, digits
from vit_edge.bench.results.percentiles import Estimate
from vit_edge.bench.results.runs import Entry, Run
from vit_edge.parity.limits import limit_for

Batches = tuple[int, ...] | None  # None: those of --batch
GEMM_SIDE = 2048  # large enough for the peak rate, small enough to run in 50 ms; see gemm_peer.py


class Competitor(NamedTuple):
    """A setup of a script of peers/."""

    tool: str  # what --only names
    setup: str  # of the script
    requirements: str  # peers/requirements-<this>.txt, or "none": our own environment
    precision: str  # whose parity limit its answers are held to
    stage: Literal["model", "end-to-end"] = "model"
    variant: str | None = None  # another model than the ViT
    batches: Batches = None
    multiply_adds: int | None = None  # of the other model, where they count
    classifies: bool = True  # whether it has answers to compare

    @property
    def script(self) -> str:
        """Its file in peers/."""
        return f"{self.tool}_peer.py"

    @property
    def name(self) -> str:
        """What it is called in tables, but for the batch."""
        return f"{self.tool} {self.setup}"


class Own(NamedTuple):
    """How a bundle of ours is run; `threads` is added on a CPU."""

    bundle: str  # VARIANT-<this>, as suite_bundles.py makes it
    backend: str
    options: Mapping[str, Option] = {}
    batches: Batches = None
    stage: Literal["model", "end-to-end"] = "model"


class Bar(NamedTuple):
    """The fastest of `ours` takes at most `limit` times as long as the fastest of `theirs`.

    Both are patterns of `label`.
    """

    name: str
    ours: tuple[str, ...]
    theirs: tuple[str, ...]
    limit: float
    batch: int = 1
    of: Literal["latency", "start", "arithmetic"] = "latency"


class Comparison(NamedTuple):
    """All that takes turns in one run, and what is asked of it."""

    competitors: tuple[Competitor, ...]
    own: tuple[Own, ...]
    bars: tuple[Bar, ...] = ()
    on: Literal["cpu", "gpu"] = "cpu"


def _rows(tool: str, requirements: str, setups: dict[str, str]) -> tuple[Competitor, ...]:
    return tuple(Competitor(tool, setup, requirements, kind) for setup, kind in setups.items())


ALL = Comparison(
    (
        *_rows("torch", "cpu", {"eager-fp32": "fp32", "eager-bf16": "bf16",
                                "compiled-fp32": "fp32", "compiled-bf16": "bf16"}),
        Competitor("transformers", "eager-fp32", "stock", "fp32"),
        Competitor("transformers", "pipeline", "stock", "fp32", "end-to-end"),
        *_rows("timm", "cpu", {"fp32": "fp32", "dynamic": "int8", "static": "int8"}),
        *_rows("optimum", "optimum", {"fp32": "fp32", "dynamic-int8": "int8"}),
        *_rows("openvino", "cpu", {"fp32": "fp32", "bf16": "bf16", "nncf-int8": "int8",
                                   "nncf-int8-bf16": "int8"}),
        *_rows("executorch", "executorch", {"fp32": "fp32", "int8": "int8"}),
        *_rows("litert", "litert", {"fp32": "fp32", "dynamic-int8": "int8"}),
        *(
            Competitor("cnn", f"{model}-{precision}", "cpu", precision, "model", model)
            for model in ("resnet50", "densenet121")
            for precision in ("fp32", "int8")
        ),
        Competitor("vit_cpp", "binary", "none", "fp16", "end-to-end", "user's model"),
    ),
    (
        *(Own(name, backend) for name in ("fp32", "int8") for backend in ("ort", "openvino")),
        *(Own(name, "ort", {}, (1,), "end-to-end") for name in ("fp32", "int8")),
    ),
)  # fmt: skip

_PRODUCT = f"product of {GEMM_SIDE} x {GEMM_SIDE}"
_SPLIT: dict[str, Option] = {"split_tokens": "full blocks"}  # the number that full_blocks gives
_STREAMS: dict[str, Option] = {"mode": "throughput", "streams": 2}
_BUILT = ("fp32 ort threads=*",)
_NNCF = ("openvino nncf-int8*",)


def _executed(precision: str, **options: Option) -> dict[str, Option]:
    return {"execution_precision": precision, **options}


# Every bar of a CPU. INT8 in OpenVINO: for latency, tokens split, and a batch by two streams.
CPU = Comparison(
    (
        Competitor("openvino", "nncf-int8", "cpu", "int8", batches=(1, 8)),
        Competitor("openvino", "nncf-int8-bf16", "cpu", "int8", batches=(1, 8)),
        Competitor("openvino", "nncf-int8-streams", "cpu", "int8", batches=(8,)),
        Competitor("openvino", "nncf-int8-bf16-streams", "cpu", "int8", batches=(8,)),
        Competitor("openvino", "bf16", "cpu", "bf16", batches=(1,)),
        Competitor("timm", "dynamic", "cpu", "int8", batches=(1,)),
        Competitor("timm", "dynamo", "cpu", "fp32", batches=(1,)),
        Competitor("torch", "eager-bf16", "cpu", "bf16", batches=(1,)),
        Competitor("vit", "eager-fp32", "none", "fp32", batches=(1,)),
        Competitor("vit", "eager-bf16", "none", "bf16", batches=(1,)),
        *(
            Competitor("gemm", setup, "none", "fp32", "model", _PRODUCT, (1,), GEMM_SIDE**3, False)
            for setup in ("torch", "onnxruntime")
        ),
    ),
    (
        Own("int8", "ort", {}, (1, 8)),
        Own("int8", "ort", {"micro_batch": 1}, (8,)),
        *(
            Own("int8", "openvino", _executed(precision) | options, batches)
            for precision in ("f32", "bf16-products")
            for options, batches in (
                (_executed(precision), (1, 8)), (_SPLIT, (1,)), (_STREAMS, (8,)),
            )
        ),
        Own("fp32", "ort", {}, (1,)),
        Own("fp32", "ort", {"engine": "never"}, (1,)),
        Own("fp32", "openvino", _executed("f32", **_SPLIT), (1,)),
        Own("fp32", "openvino", _executed("bf16-products", **_SPLIT), (1,)),
        Own("bf16", "openvino", _executed("bf16"), (1,)),
        Own("bf16", "openvino", _executed("bf16", **_SPLIT), (1,)),
    ),
    (
        Bar("INT8 against OpenVINO + NNCF", ("int8 *",), _NNCF, 0.90),
        Bar("INT8 against quantize_dynamic", ("int8 *",), ("timm dynamic",), 0.75),
        Bar("INT8 against our FP32 on ort", ("int8 *",), _BUILT, 0.36),
        Bar("INT8, batch 8, against OpenVINO + NNCF", ("int8 *",), _NNCF, 0.92, 8),
        Bar("FP32/BF16 against PyTorch and OpenVINO bf16", ("fp32 *", "bf16 *"),
            ("openvino bf16", "torch eager-bf16", "vit eager-bf16"), 0.95),
        Bar("INT8 against the limit of this CPU", ("int8 *",), ("gemm *",), 1.5, 1, "arithmetic"),
        Bar("process start to first answer", ("int8 ort*",), ("vit eager-fp32",), 0.06, 1, "start"),
        Bar("FP32 against timm and torch.onnx", _BUILT, ("timm dynamo",), 0.9),
        Bar("start of FP32, built against not built", _BUILT, ("fp32 ort engine=never*",), 0.7, 1,
            "start"),
    ),
)  # fmt: skip

GPU = Comparison(
    _rows("vit", "none", {"cuda-eager-fp32": "fp32", "cuda-eager-fp16": "fp16",
                          "cuda-compiled-fp16": "fp16"}),
    (
        *(Own(f"gpu-{name}", "ort", {"provider": "cuda"}) for name in ("fp32", "fp16", "int8")),
        Own("gpu-fp16", "ort", {"provider": "cuda", "cuda_graph": True}),
        *(Own(f"gpu-{name}", "trt") for name in ("fp16", "int8")),
    ),
    on="gpu",
)  # fmt: skip

COMPARISONS: Mapping[str, Comparison] = {"all": ALL, "cpu": CPU, "gpu": GPU}


def bar_rows(bars: Sequence[Bar], run: Run) -> list[tuple[str, ...]]:
    """Each bar: the best of ours that holds its limit against the best of theirs.

    One of ours that is faster and misses the parity limit has a line of its own, and does not
    count. All of theirs count, whatever their answers are worth.
    """
    lines: list[tuple[str, ...]] = [("", "", "ours", "theirs", "ratio", "95 % interval", "bar", "")]
    for number, bar in enumerate(bars, 1):
        lines += [(str(number), *line) for line in _bar_lines(bar, run)]
    return lines


def _bar_lines(bar: Bar, run: Run) -> Iterator[tuple[str, ...]]:
    entries = [
        entry
        for entry in run.configurations
        if entry.measured and entry.batch == bar.batch and entry.stage == "model"
    ]
    ours, theirs = (
        sorted((entry for entry in entries if _is_one_of(entry, patterns)), key=_time_of(bar))
        for patterns in (bar.ours, bar.theirs)
    )
    if not (ours and theirs):
        yield (bar.name, "-", "-", "-", "-", f"{bar.limit}", "not measured")
        return
    counting = next((entry for entry in ours if holds(entry)), None)
    if counting is not None:
        yield _cells(bar, counting, theirs[0], run)
    if ours[0] is not counting:
        cells = _cells(bar, ours[0], theirs[0], run)
        yield (f"{bar.name}, its limit missed", *cells[1:-1], "does not count")


def _cells(bar: Bar, ours: Entry, theirs: Entry, run: Run) -> tuple[str, ...]:
    times = _ratio(bar, ours, theirs, run)
    return (
        bar.name, label(ours), label(theirs), digits(times.value),
        f"{digits(times.low)} to {digits(times.high)}", f"{bar.limit}",
        "met" if times.value <= bar.limit else "NOT MET",
    )  # fmt: skip


def _ratio(bar: Bar, ours: Entry, theirs: Entry, run: Run) -> Estimate:
    """How long ours takes, relative to theirs.

    INT8 products (VNNI) do four times the multiply-adds of float32 ones in an instruction: the
    limit is the time of the model's arithmetic at four times the rate of a float32 product.
    """
    if bar.of == "start":
        return ratio(_starts_s(ours), _starts_s(theirs))
    times = compared(ours, theirs, run, run).ratio
    if bar.of == "latency":
        return times
    ours_adds, theirs_adds = ours.model.multiply_adds, theirs.model.multiply_adds
    assert ours_adds is not None  # of a variant of ours
    assert theirs_adds is not None  # of a competitor, whose row says it
    work = ours_adds / (4 * theirs_adds)
    return Estimate(*(end / work for end in times))


def _time_of(bar: Bar) -> Any:
    def time(entry: Entry) -> float:
        if bar.of == "start":
            return statistics.median(_starts_s(entry))
        return statistics.median(statistics.median(taken) for taken in entry.samples if taken)

    return time


def _starts_s(entry: Entry) -> list[float]:
    """From starting Python to the first answer, of each process."""
    return [process.cold_s.total for process in entry.processes]


def holds(entry: Entry) -> bool:
    """Whether the answers hold the limit of the precision that is computed in.

    The bench judges by the bundle's precision; a float32 bundle that a runtime multiplies in bf16
    is held to the limit of bf16 here.
    """
    parity, execution = entry.parity, str(entry.options.get("execution_precision"))
    if parity is None or not parity.problems:
        return parity is not None
    in_bf16 = entry.model.precision == "fp32" and execution.startswith("bf16")
    return in_bf16 and not limit_for("bf16").problems("logits", parity.statistics)


def label(entry: Entry) -> str:
    """What bars pick by: a competitor's name; of ours the precision and how it is run."""
    if entry.is_peer:
        return entry.model.name
    setup = name_of(entry.backend, entry.options)
    return cli.printable(f"{entry.model.precision} {setup}")


def _is_one_of(entry: Entry, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(label(entry), pattern) for pattern in patterns)
