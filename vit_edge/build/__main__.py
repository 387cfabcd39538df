"""vit-edge build: compile a bundle for this device, or find out how it runs best here."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vit_edge import backends, cli
from vit_edge.backends import Option, auto
from vit_edge.build.api import TUNE_BATCHES, build, tune
from vit_edge.build.options import option_rows, options_from_text
from vit_edge.errors import UsageError, VitEdgeError

_FOR_TUNE = ("batch", "memory_limit", "target")


def parser() -> cli.Parser:
    """The command line."""
    parser = cli.bundle_parser(
        "build",
        "Compile a bundle for the device this runs on. The engine is a cache of model.onnx, keyed "
        "by model, runtime and hardware; Predictor uses it by itself. With --tune every runtime "
        "that is installed is built, checked and timed, and Predictor takes the fastest from then "
        "on; several bundles of one model are timed together, and the fastest one is named.",
        "vit-edge build bundles/base-patch16-224-fp32 --backend ort\n"
        "         vit-edge build bundles/base-patch16-224-fp16 --backend trt "
        "--set profiles=1,8,32\n"
        "         vit-edge build bundles/base-patch16-224-int8 --tune --batch 1,8\n"
        "         vit-edge build bundles/base-patch16-224-int8 "
        "bundles/base-patch16-224-fp16 --tune --backend trt",
    )
    parser.add_argument(
        "more",
        nargs="*",
        default=[],
        metavar="BUNDLE",
        help="more of them: built one after the other; with --tune the same model in other "
        "precisions, timed together",
    )
    names = ", ".join(backends.runtimes())
    parser.add_argument(
        "-b",
        "--backend",
        metavar="NAME",
        help=f"one of {names}; default: ort, with --tune all that are installed",
    )
    cli.add_out(
        parser,
        "DIR",
        "where to put the engine; default: the bundle's engines/, or the user's cache if read-only",
    )
    parser.rename("--engines-dir", "--out")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="an option of the backend's build, such as optimization_level=5; may be repeated; "
        "`--set help` lists them. Without it the bundle's recipe decides",
    )
    parser.add_argument("--tune", action="store_true", help="try everything, record the fastest")
    parser.add_argument(
        "--batch",
        metavar="N,N",
        help=f"tune: the batch sizes; default: {','.join(map(str, TUNE_BATCHES))}",
    )
    parser.rename("--batches", "--batch")
    parser.add_argument(
        "--memory-limit",
        metavar="SIZE",
        help="tune: what the process may take, such as 100MB; what needs more is not chosen",
    )
    parser.add_argument(
        "--target",
        metavar="NAME=NUMBER,...",
        help="tune: what the answers must reach besides the precision's limit",
    )
    parser.rename("--parity-target", "--target")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Build from the command line."""
    return cli.guarded(lambda: _run(parser().parse_args(argv)))


def _run(arguments: argparse.Namespace) -> int:
    return (_tune if arguments.tune else _build)(arguments)


def _build(arguments: argparse.Namespace) -> int:
    useless = [name for name in _FOR_TUNE if getattr(arguments, name) is not None]
    if useless:
        raise UsageError(f"--{useless[0].replace('_', '-')} is for --tune")
    backend = arguments.backend or auto.DEFAULT
    if arguments.set == ["help"]:
        print(cli.table(option_rows(backend)))
        return 0
    options = options_from_text(backend, arguments.set)
    bundles = [arguments.bundle, *arguments.more]
    if len(bundles) == 1:
        result = _build_one(arguments.bundle, backend, arguments.out, options)
        print(json.dumps(result, indent=2) if arguments.json else _line(result))
        return 0
    results, code = _build_all(bundles, backend, arguments.out, options)
    if arguments.json:
        print(json.dumps(results, indent=2))
    else:
        for result in results:
            print(_line(result) if "engine" in result else f"failed   {result['bundle']}")
    return code


def _build_all(
    bundles: Sequence[str], backend: str, engines_dir: Path | None, options: Mapping[str, Option]
) -> tuple[list[dict[str, Any]], int]:
    """Build one after the other; one that fails does not stop the rest.

    Returns:
        What came of each, and the largest of their exit codes.
    """
    results: list[dict[str, Any]] = []
    code = 0
    for bundle in bundles:
        try:
            result = _build_one(bundle, backend, engines_dir, options)
        except VitEdgeError as error:
            print(f"{bundle}: {type(error).__name__}: {error}", file=sys.stderr)
            result = {"error": str(error)}
            code = max(code, error.exit_code)
        results.append({"bundle": bundle, **result})
    return results, code


def _build_one(
    bundle: str, backend: str, engines_dir: Path | None, options: Mapping[str, Option]
) -> dict[str, Any]:
    engine = build(bundle, backend=backend, out=engines_dir, options=options)
    return {"engine": str(engine.path), "size_bytes": engine.size_bytes, "build_s": engine.build_s}


def _line(result: Mapping[str, Any]) -> str:
    size_mb, seconds = result["size_bytes"] / 1e6, result["build_s"]
    return f"engine   {result['engine']} ({size_mb:.1f} MB, built in {seconds:.1f} s)"


def _tune(arguments: argparse.Namespace) -> int:
    if arguments.set:
        raise UsageError("--set is for one backend's build; --tune tries what is worth trying")
    tuning = tune(
        [arguments.bundle, *arguments.more],
        batch=TUNE_BATCHES
        if arguments.batch is None
        else cli.whole_numbers(arguments.batch, "--batch"),
        backend=arguments.backend,
        out=arguments.out,
        memory_limit=arguments.memory_limit,
        target=arguments.target,
    )
    if arguments.json:
        print(json.dumps(tuning.as_dict(), indent=2))
    else:
        print("\n".join([cli.table(tuning.rows()), *tuning.lines()]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
