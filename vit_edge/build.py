"""python -m vit_edge.build: compile a bundle for this device, or find out how it runs best here."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from vit_edge import backends, build_options, cli, isolate, tuned
from vit_edge.bundle import Bundle
from vit_edge.choose import Option
from vit_edge.errors import UsageError

TUNE_BATCHES = "1,8"
_FOR_TUNE = ("batches", "memory_limit", "parity_target")


def build(
    bundle: str,
    backend: str,
    engines_dir: Path | None = None,
    options: Mapping[str, Option] | None = None,
) -> Path:
    """Compile a bundle in this process.

    Args:
        bundle: Its directory.
        backend: A backend's name.
        engines_dir: Where to put the engine; by default in the bundle, or the user's cache.
        options: Of the backend's `build`.

    Returns:
        The engine's directory.
    """
    return backends.build(Bundle.read(bundle), backend, engines_dir, options or {})


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = cli.bundle_parser(
        "python -m vit_edge.build",
        "Compile a bundle for the device this runs on. The engine is a cache of model.onnx, keyed "
        "by model, runtime and hardware; Predictor uses it by itself. With --tune every runtime "
        "that is installed is built, checked and timed, and Predictor takes the fastest from then "
        "on.",
        "python -m vit_edge.build bundles/base-patch16-224-fp32 --backend ort\n"
        "         python -m vit_edge.build bundles/base-patch16-224-fp16 --backend trt "
        "--set profiles=1,8,32\n"
        "         python -m vit_edge.build bundles/base-patch16-224-int8 --tune --batches 1,8",
    )
    names = ", ".join(backends.names())
    made.add_argument(
        "--backend",
        metavar="NAME",
        help=f"one of {names}; default: ort, with --tune all that are installed",
    )
    made.add_argument(
        "--engines-dir",
        type=Path,
        metavar="DIR",
        help="where to put it; default: the bundle's engines/, or the user's cache if read-only",
    )
    made.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="an option of the backend's build, such as optimization_level=5; may be repeated; "
        "`--set help` lists them. Without it the bundle's recipe decides",
    )
    made.add_argument("--tune", action="store_true", help="try everything, record the fastest")
    made.add_argument(
        "--batches", metavar="N,N", help=f"batch sizes to tune for; default: {TUNE_BATCHES}"
    )
    made.add_argument(
        "--memory-limit",
        metavar="SIZE",
        help="tune: what the process may take, such as 100MB; what needs more is not chosen",
    )
    made.add_argument(
        "--parity-target",
        metavar="NAME=NUMBER,...",
        help="tune: what the answers must reach besides the precision's limit",
    )
    return made


def main(argv: list[str] | None = None) -> int:
    """Build from the command line."""
    arguments = parser().parse_args(argv)
    return cli.guarded(lambda: (_tune if arguments.tune else _build)(arguments))


def _build(arguments: argparse.Namespace) -> int:
    useless = [name for name in _FOR_TUNE if getattr(arguments, name) is not None]
    if useless:
        raise UsageError(f"--{useless[0].replace('_', '-')} is for --tune")
    backend = arguments.backend or tuned.DEFAULT
    if arguments.set == ["help"]:
        print(cli.table(build_options.described(backend)))
        return 0
    options = build_options.from_text(backend, arguments.set)
    start = time.perf_counter()
    # In a child process, whose death of too little memory is a message here.
    call = isolate.attempted_call(
        "vit_edge.build:build",
        arguments.bundle,
        backend,
        arguments.engines_dir,
        options,
        echo=True,
    )
    call.child.check("the build")
    engine: Path = call.value
    seconds = time.perf_counter() - start
    size = sum(file.stat().st_size for file in engine.iterdir())
    if arguments.json:
        result = {"engine": str(engine), "size_bytes": size, "build_s": seconds}
        print(json.dumps(result, indent=2))
    else:
        print(f"engine   {engine} ({size / 1e6:.1f} MB, built in {seconds:.1f} s)")
    return 0


def _tune(arguments: argparse.Namespace) -> int:
    if arguments.set:
        raise UsageError("--set is for one backend's build; --tune tries what is worth trying")
    from vit_edge.parity.targets import parse_target
    from vit_edge.tune import tune

    target = None if arguments.parity_target is None else parse_target(arguments.parity_target)
    limit = None if arguments.memory_limit is None else cli.size_bytes(arguments.memory_limit)
    tried = tune(
        Bundle.read(arguments.bundle),
        cli.whole_numbers(arguments.batches or TUNE_BATCHES, "--batches"),
        only=[arguments.backend] if arguments.backend else [],
        engines_dir=arguments.engines_dir,
        memory_limit_bytes=limit,
        target=target,
    )
    if arguments.json:
        print(json.dumps(tried.as_dict(), indent=2))
        return 0
    print(cli.table(tried.rows()))
    for batch, index in tried.chosen.items():
        print(f"batch {batch:<3} {tried.measured[index].name}")
    print(f"record    {tried.record}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
