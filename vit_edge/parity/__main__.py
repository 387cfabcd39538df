"""python -m vit_edge.parity: does this backend, here, still compute the reference's answers?"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from vit_edge import backends, cli
from vit_edge.bundle import Bundle
from vit_edge.parity.compare import (
    as_json,
    check_golden,
    check_probes,
    compare_answers,
    gate_batches,
)
from vit_edge.parity.golden import Golden
from vit_edge.parity.limits import limit_for


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = cli.bundle_parser(
        "python -m vit_edge.parity",
        "Compare a backend with the reference's answers in golden.npz: first the preprocessing of "
        "its probe files, then every output at several batch sizes.",
        "python -m vit_edge.parity bundles/base-patch16-224-fp32 --backend ort\n"
        "exit codes: 0 within the limits, 4 not",
    )
    cli.add_backend(made)
    made.add_argument(
        "--golden", type=Path, metavar="FILE", help="another golden file than the bundle's own"
    )
    return made


def main(argv: list[str] | None = None) -> int:
    """Compare from the command line."""
    arguments = parser().parse_args(argv)
    return cli.guarded(lambda: _run(arguments))


def _run(arguments: argparse.Namespace) -> int:
    bundle = Bundle.read(arguments.bundle)
    manifest = bundle.manifest
    with Golden(arguments.golden or bundle.golden_path) as golden:
        check_golden(golden, manifest)
        backend = backends.module(arguments.backend).load(bundle)
        probes = golden.probes()
        comparison = compare_answers(
            backend,
            golden,
            manifest.preprocessing,
            batches=gate_batches(manifest.max_batch),
            limit=limit_for(manifest.precision),
        )
        comparison.probe_problems.extend(check_probes(probes, manifest.preprocessing))
        images = len(golden)
    backend.close()
    problems = comparison.problems
    if arguments.json:
        print(json.dumps(as_json(comparison, backend.facts), indent=2))
    else:
        print(f"{bundle.path} on {backend.facts['runtime']}, {backend.facts['device']}")
        print(f"engine         {backend.facts['engine']}")
        print(f"preprocessing  {len(probes)} probe files")
        print(f"answers        {images} images against the {golden.reference_dtype} reference")
        print("output      batch  max|diff|  of max|ref|  allowed  top-1 agreement")
        for row in comparison.summary():
            agreement = row["top1_agreement"]
            print(
                f"{row['output']:<11} {row['batch']:>5}  {row['max_abs_diff']:>9.2e}  "
                f"{row['relative']:>11.2e}  {row['allowed_relative']:>7.0e}  "
                + ("-" if agreement is None else f"{agreement:.2%}")
            )
        for problem in problems:
            print(f"FAILED: {problem}")
        print("parity FAILED" if problems else "parity holds")
    return 4 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
