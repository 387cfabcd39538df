"""vit-edge triton BUNDLE... --out REPO: a model repository of NVIDIA's Triton."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict
from typing import get_args

from vit_edge import cli
from vit_edge.triton.config import Backend
from vit_edge.triton.repository import ALIASES, DEFAULT_QUEUE_US, Repository, triton


def parser() -> cli.Parser:
    """The command line."""
    options = cli.bundle_parser(
        "triton",
        "Write a model repository of NVIDIA's Triton Inference Server: one model a bundle, with "
        "its tensors, labels, dynamic batching and a warm-up. With the Python backend clients send "
        "encoded images; with the others the model's own tensor.",
        "vit-edge triton bundles/cifar10 --out models\n"
        "         vit-edge triton bundles/cifar10 -o models --backend onnxruntime --instances 2\n"
        "         vit-edge triton bundles/old bundles/new --names cifar10,cifar10 -o models\n"
        "         tritonserver --model-repository models",
    )
    options.add_argument(
        "more", nargs="*", default=[], metavar="BUNDLE", help="more of them: a model each"
    )
    cli.add_out(options, "REPO", "the repository's directory", required=True)
    options.add_argument(
        "-b",
        "--backend",
        default="python",
        choices=(*get_args(Backend), *ALIASES),
        metavar="NAME",
        help=f"of Triton, one of {', '.join(get_args(Backend))}; default: python. tensorrt serves "
        "the plan that `build` made here",
    )
    options.add_argument(
        "--names",
        metavar="NAME,...",
        help="of the models; default: those of the bundles' directories. A name that comes again "
        "makes the next version of its model",
    )
    options.add_argument(
        "--instances", type=int, default=1, metavar="N", help="of each model; default: 1"
    )
    options.add_argument(
        "--queue-us",
        type=int,
        default=DEFAULT_QUEUE_US,
        metavar="N",
        help="microseconds that a request may wait for others to share a batch; default: "
        f"{DEFAULT_QUEUE_US}",
    )
    options.add_argument(
        "--threads",
        type=int,
        metavar="N",
        help="of each instance; default: every CPU of the server, or this machine's shared by "
        "several instances",
    )
    options.add_argument(
        "--top-k",
        type=int,
        metavar="K",
        help="classes that the Python backend ranks; default: 5",
    )
    options.add_argument(
        "--ensemble",
        action="store_true",
        help="write NAME_ensemble as well, which takes an RGB image of any size",
    )
    options.add_argument("--force", action="store_true", help="replace a repository")
    return options


def main(argv: list[str] | None = None) -> int:
    """Write one from the command line."""
    return cli.guarded(lambda: _run(parser().parse_args(argv)))


def _run(arguments: argparse.Namespace) -> int:
    repository = triton(
        [arguments.bundle, *arguments.more],
        out=arguments.out,
        backend=arguments.backend,
        names=None if arguments.names is None else arguments.names.split(","),
        instances=arguments.instances,
        queue_us=arguments.queue_us,
        threads=arguments.threads,
        top_k=arguments.top_k,
        ensemble=arguments.ensemble,
        force=arguments.force,
    )
    if arguments.json:
        print(json.dumps({**asdict(repository), "path": str(repository.path)}, indent=2))
    else:
        for line in _lines(repository):
            print(cli.printable(line))
    return 0


def _lines(repository: Repository) -> Iterator[str]:
    for model in repository.models:
        count = len(model.bundles)
        versions = "" if count == 1 else f", versions 1 to {count}"
        yield f"model    {model.name} on {model.backend}, batches up to {model.max_batch}{versions}"
        for word, tensors in (("input", model.inputs), ("output", model.outputs)):
            yield f"{word:<8} " + ", ".join(f"{name} {what}" for name, what in tensors.items())
    yield from (f"note     {note}" for note in repository.notes)
    yield f"serve    tritonserver --model-repository {repository.path}"


if __name__ == "__main__":
    sys.exit(main())
