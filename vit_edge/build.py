"""python -m vit_edge.build: compile a bundle for this device, by whichever runtime."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

from vit_edge import backends, cli, isolate
from vit_edge.bundle import Bundle


def build(bundle: str, backend: str, engines_dir: Path | None = None) -> Path:
    """Compile a bundle in this process.

    Args:
        bundle: Its directory.
        backend: A backend's name.
        engines_dir: Where to put the engine; by default in the bundle, or the user's cache.

    Returns:
        The engine's directory.
    """
    return backends.module(backend).build(Bundle.read(bundle), engines_dir)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = cli.bundle_parser(
        "python -m vit_edge.build",
        "Compile a bundle for the device this runs on. The engine is a cache of model.onnx, keyed "
        "by model, runtime and hardware; Predictor uses it by itself.",
        "python -m vit_edge.build bundles/base-patch16-224-fp32 --backend ort",
    )
    cli.add_backend(made)
    made.add_argument(
        "--engines-dir",
        type=Path,
        metavar="DIR",
        help="where to put it; default: the bundle's engines/, or the user's cache if read-only",
    )
    return made


def main(argv: list[str] | None = None) -> int:
    """Build from the command line."""
    arguments = parser().parse_args(argv)
    return cli.guarded(lambda: _run(arguments))


def _run(arguments: argparse.Namespace) -> int:
    start = time.perf_counter()
    # In a child process, whose death of too little memory is a message here.
    engine = isolate.call_in_child(
        "vit_edge.build:build", arguments.bundle, arguments.backend, arguments.engines_dir
    )
    seconds = time.perf_counter() - start
    size = sum(file.stat().st_size for file in engine.iterdir())
    if arguments.json:
        result = {"engine": str(engine), "size_bytes": size, "build_s": seconds}
        print(json.dumps(result, indent=2))
    else:
        print(f"engine   {engine} ({size / 1e6:.1f} MB, built in {seconds:.1f} s)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
