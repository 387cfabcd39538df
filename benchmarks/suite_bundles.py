"""Make the bundles that suites name: seeded weights, calibrated on crops of the package's photos.

    python benchmarks/suite_bundles.py --bundles-dir bundles benchmarks/suites/*.toml

A bundle's name says what it is: VARIANT-PRECISION, VARIANT-at-SIDE-PRECISION for another image
size, VARIANT-gpu-PRECISION by the recipe of that name. What is there is kept. Their times are those
of trained weights. Their parity says that the export is sound and no more: the weights are random,
and the crops show what the golden images do. int4 misses its limit with random weights (12 to
14 dB), and is made all the same, see ungated.py. Measure fidelity with a checkpoint and photos of
your own.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import environments
import script
from photos import crops

from vit_edge import cli
from vit_edge.bench.run.plan import read_suite
from vit_edge.errors import ParityError, UsageError
from vit_edge.images.folders import PHOTOS
from vit_edge.variants import variant

PRECISIONS = ("fp32", "bf16", "fp16", "int8", "int4")
_NAME = re.compile(
    rf"(?P<variant>.+?)(-at-(?P<side>\d+))?-(?P<recipe>(gpu-)?(?P<precision>{'|'.join(PRECISIONS)}))"
)
CALIBRATION_IMAGES = 64
_CALIBRATED = {
    "int8": ("--set", "sensitivity_images=4"),  # fewer than its own: an hour less over all suites
    "int4": (),
}
# The recipe's target is for photos: seeded weights hardly tell images apart, and any noise flips.
_CALIBRATED_ON_GPU = {
    "fp16": (),
    "int8": (*_CALIBRATED["int8"], "--parity-target", "top1_agreement=0.8"),
}
EXPORT = ("-m", "vit_edge.export")


def main(argv: list[str] | None = None) -> int:
    parser = script.parser(__doc__)
    parser.add_argument("suites", nargs="+", type=Path, metavar="SUITE")
    parser.add_argument("--bundles-dir", type=Path, default=Path("bundles"), metavar="DIR")
    arguments = parser.parse_args(argv)
    return cli.guarded(lambda: run(arguments.suites, arguments.bundles_dir))


def run(suites: list[Path], folder: Path) -> int:
    """Export what is not there yet."""
    named = [
        configuration.bundle.name
        for suite in suites
        for configuration in read_suite(suite, folder).configurations
    ]
    failed = make(list(dict.fromkeys(named)), folder)
    if failed:
        raise ParityError(f"not made, see above: {', '.join(failed)}; the others are there")
    return 0


def make(names: list[str], folder: Path) -> list[str]:
    """Export the bundles of these names, unless they are there.

    Returns:
        Which could not be made, with exit codes; their reasons have been told.

    Raises:
        UsageError: A name stands for no bundle.
    """
    calibration = folder / "calibration"
    wanted = [(name, *export_options(name, calibration)) for name in names]  # all, before any work
    folder.mkdir(parents=True, exist_ok=True)
    if not calibration.exists():
        crops(PHOTOS, calibration, CALIBRATION_IMAGES)
    failed = []
    for name, row, options in wanted:
        try:
            if not (folder / name).exists():
                fixed = ("--variant", row, "--checkpoint", "seeded:0", "--out", folder / name)
                environments.run(Path(sys.executable), *_command(name), *fixed, *options)
        except subprocess.CalledProcessError as error:  # it has said why
            failed.append(f"{name} (exit code {error.returncode})")
        else:
            print(folder / name, flush=True)
    return failed


def _command(name: str) -> tuple[str, ...]:
    """What exports it: int4 of random weights misses its parity limit, whatever is tried."""
    ungated = str(Path(__file__).with_name("ungated.py"))
    return (ungated,) if name.endswith("-int4") else EXPORT


def export_options(name: str, calibration: Path) -> tuple[str, tuple[str, ...]]:
    """The variant and the options of vit_edge.export that a bundle's name stands for.

    Args:
        name: The bundle's.
        calibration: The folder of images for the precisions that need some.

    Raises:
        UsageError: It stands for none.
    """
    parts = _NAME.fullmatch(name)
    if parts is None:
        raise UsageError(
            f"no bundle is called {name!r}: expected VARIANT[-at-SIDE][-gpu]-PRECISION, "
            f"with a precision of {', '.join(PRECISIONS)}"
        )
    row, precision = variant(parts["variant"]), parts["precision"]
    on_gpu = parts["recipe"] != precision
    options = ["--recipe", parts["recipe"]] if on_gpu else ["--precision", precision]
    calibrated = _CALIBRATED_ON_GPU if on_gpu else _CALIBRATED
    if precision in calibrated:
        options += ["--calibration", str(calibration)]
        options += ["--calibration-images", str(CALIBRATION_IMAGES), *calibrated[precision]]
    if parts["side"]:
        options += ["--image-size", parts["side"]]
    if not row.has_head:
        options += ["--outputs", "features"]
    return row.name, tuple(options)


if __name__ == "__main__":
    sys.exit(main())
