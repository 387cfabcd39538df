"""python -m vit_edge.parity: does this backend, here, still compute the reference's answers?"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from vit_edge import cli, tuned
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
from vit_edge.parity.tables import exact_table, statistics_table
from vit_edge.parity.targets import STATISTICS, parse_target


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = cli.bundle_parser(
        "python -m vit_edge.parity",
        "Compare a backend with the reference's answers in golden.npz: first the preprocessing of "
        "its probe files, then every output at several batch sizes.",
        "python -m vit_edge.parity bundles/base-patch16-224-fp32 --backend ort\n"
        "python -m vit_edge.parity bundles/base-patch16-224-int8 --target top1_agreement=0.99\n"
        "exit codes: 0 within the limits, 4 not",
    )
    cli.add_backend(made)
    made.add_argument(
        "--golden", type=Path, metavar="FILE", help="another golden file than the bundle's own"
    )
    made.add_argument(
        "--target",
        metavar="NAME=NUMBER,...",
        help="what the logits must reach besides the precision's limit; of "
        + ", ".join(STATISTICS),
    )
    return made


def main(argv: list[str] | None = None) -> int:
    """Compare from the command line."""
    arguments = parser().parse_args(argv)
    return cli.guarded(lambda: _run(arguments))


def _run(arguments: argparse.Namespace) -> int:
    target = None if arguments.target is None else parse_target(arguments.target)
    bundle = Bundle.read(arguments.bundle)
    manifest = bundle.manifest
    with Golden(arguments.golden or bundle.golden_path) as golden:
        check_golden(golden, manifest)
        backend = tuned.load_named(arguments.backend, bundle)
        probes = golden.probes()
        comparison = compare_answers(
            backend,
            golden,
            manifest,
            batches=gate_batches(manifest.max_batch),
            limit=limit_for(manifest.precision),
            target=target,
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
        simulated = backend.facts.get("simulated")
        if simulated is not None:
            print(f"simulated      {simulated}")
        exact = manifest.precision == "fp32" and target is None
        for line in (exact_table if exact else statistics_table)(comparison):
            print(line)
        for problem in problems:
            print(f"FAILED: {problem}")
        print("parity FAILED" if problems else "parity holds")
    return 4 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
