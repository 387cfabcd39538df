"""The verbs: what one does with each, where its code is, and what `vit-edge --help` says."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vit_edge.cli.parser import Parser

# what one wants -> verb -> what it does, in one line
GROUPS: dict[str, dict[str, str]] = {
    "make a bundle": {
        "export": "turn a checkpoint, or another exporter's graph, into a verified bundle",
        "quantize": "lower the precision of an fp32 bundle, without its checkpoint",
    },
    "use it": {
        "predict": "classify images, or embed them",
        "batch": "answer millions of images, into shards of Parquet; on Ray, too",
        "triton": "write a model repository of NVIDIA's Triton Inference Server",
        "inspect": "show what is in a bundle",
        "probes": "write the golden answers as plain files, for tests in other languages",
        "push": "put a bundle on the Hugging Face hub, with a model card",
        "verify": "read every byte of a bundle, and check that its model is safe to run",
    },
    "judge it": {
        "parity": "compare the answers of each backend with the reference's",
        "parity record": "write a golden file of your own images",
        "parity merge": "show the results of several devices side by side",
        "evaluate": "measure the accuracy on labelled images",
        "bench": "measure latency, throughput and memory",
        "bench compare": "compare what was measured",
        "bench check": "fail where it became slower",
        "bench report": "make a page of what was measured",
        "recommend": "say which bundle to ship, with which backend",
    },
    "the machine": {
        "build": "compile a bundle for this device; --tune finds out how it runs best here",
        "doctor": "say what is here, what runs here, and what to install",
    },
}
LINES = {verb: line for verbs in GROUPS.values() for verb, line in verbs.items()}
# verb -> the module whose `main` runs it
VERBS = {
    verb: f"vit_edge.{verb}"
    if verb in ("verify", "inspect", "probes", "push")
    else f"vit_edge.{verb}.__main__"
    for verb in LINES
    if " " not in verb
} | {"batch": "vit_edge.scale.__main__", "quantize": "vit_edge.export.quantizing"}
_PARSERS = {
    "parity record": "vit_edge.parity.record:parser",
    "parity merge": "vit_edge.parity.report.merge:parser",
    "bench compare": "vit_edge.bench.results.judge:compare_parser",
    "bench check": "vit_edge.bench.results.judge:check_parser",
    "bench report": "vit_edge.bench.report.verb:parser",
}


def parser_of(verb: str) -> Parser:
    """The command line of a verb, such as export or parity record."""
    module, _, function = _PARSERS.get(verb, f"{VERBS.get(verb)}:parser").partition(":")
    parser: Parser = getattr(importlib.import_module(module), function)()
    return parser


def overview() -> str:
    """What `vit-edge --help` says."""
    width = max(map(len, LINES))
    lines = ["usage: vit-edge VERB ...", "       vit-edge VERB --help"]
    for group, verbs in GROUPS.items():
        lines += ["", group]
        lines += [f"  {verb:<{width}}  {line}" for verb, line in verbs.items()]
    lines += [
        "",
        "example: vit-edge export embedded -o bundles/cifar10",
        "         vit-edge predict bundles/cifar10 photos/ --top-k 3",
        "",
        "vit-edge --version says what is installed. Completion for the shell: pip install",
        '"vit-edge[completion]"; then vit-edge --completion bash (or zsh) prints it.',
    ]
    return "\n".join(lines)
