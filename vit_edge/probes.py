"""vit-edge probes: a bundle's golden answers as plain files, for tests in any language.

    probes.json         what each file is, with tolerances
    files/NAME          an encoded image: EXIF-rotated, transparent, 16-bit, CMYK, ...
    images/NAME.png     the same, decoded: upright, opaque RGB
    images/NAME.bin     its bytes, uint8[H, W, 3]
    pixels/NAME.bin     what the preprocessing must make of it: the model's input, a batch of 1
    answers/0000.png    a golden image, resized and cropped already
    answers/0000.bin    the model's input
    answers/0000.OUTPUT.bin     float32, the reference's answer

Numbers are little-endian, arrays without headers, the last axis fastest.
"""

from __future__ import annotations

import argparse
import functools
import io
import json
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vit_edge import cli
from vit_edge.bundle import Bundle
from vit_edge.bundle.golden import Golden, Probe
from vit_edge.bundle.integrity import ensure_verified
from vit_edge.bundle.manifest import Manifest, Preprocessing, TensorSpec
from vit_edge.bundle.staging import check_destination, staged
from vit_edge.callables import make_callable
from vit_edge.errors import ParityError
from vit_edge.images.load import load_image
from vit_edge.images.preprocess import input_from_resized, pixel_levels
from vit_edge.images.resize import resized_from_image
from vit_edge.parity.compare import check_probes
from vit_edge.parity.limits import limit_of
from vit_edge.parity.targets import LOGITS

SCHEMA_VERSION = 1
INDEX_NAME = "probes.json"
# Pillow's other filters add, multiply and divide, which every machine does alike. These ask for
# sines, and a library may round one otherwise.
_OF_SINES = ("hamming", "lanczos")
# What float32 on another runtime leaves, by far; tanh for GELU leaves 60, a dropped bias 45.
_FLOAT_DB = 70.0
_ROUNDING = 0.01  # of a level: what is allowed on top, for float32 arithmetic instead of a table


@dataclass(frozen=True)
class PlainProbes:
    """What was written."""

    folder: Path
    index: Mapping[str, Any]  # probes.json


def probes(
    bundle: str | os.PathLike[str] | Bundle, out: str | os.PathLike[str], *, force: bool = False
) -> PlainProbes:
    """Write a bundle's probes and golden answers as PNG, plain arrays and a JSON index.

    Args:
        bundle: Its directory, or a Bundle that was read. Every byte of it is checked first.
        out: The folder; it appears whole or not at all.
        force: Replace a folder of probes that is there.

    Raises:
        UsageError: The folder exists.
        ParityError: This machine does not make the pixels that the bundle expects.
        IntegrityError: The bundle was changed.
        ResourceError: The folder cannot be written.
    """
    opened, folder = Bundle.read(bundle), Path(out)
    ensure_verified(opened, full=True)
    check = functools.partial(
        check_destination, folder, force=force, what="probe folder", ours=_is_ours,
        otherwise="holds no probes",
    )  # fmt: skip
    with Golden(opened.golden_path) as golden, staged(folder, option="--out", check=check) as stage:
        wrong = check_probes(golden.probes(), opened.manifest.preprocessing)
        if wrong:
            raise ParityError(
                "the probes would be wrong: this machine's preprocessing is not the bundle's:"
                + "".join(f"\n  {problem}" for problem in wrong)
            )
        index = {
            **_facts(opened),
            "preprocessing": [
                _write_probe(stage, opened.manifest, probe)
                for probe in (*golden.probes(), *_patterns(opened.manifest.preprocessing))
            ],
            "answers": [
                _write_answer(stage, opened.manifest, golden, i) for i in range(len(golden))
            ],
        }
        text = json.dumps(index, indent=2, ensure_ascii=False) + "\n"
        (stage / INDEX_NAME).write_text(text, encoding="utf-8")
    return PlainProbes(folder, index)


def _is_ours(folder: Path) -> bool:
    return (folder / INDEX_NAME).is_file()


def _facts(bundle: Bundle) -> dict[str, Any]:
    manifest = bundle.manifest
    return {
        "schema_version": SCHEMA_VERSION,
        "bundle": {
            "variant": manifest.variant,
            "precision": manifest.precision,
            "model_sha256": bundle.model_sha256,
        },
        "input": _described(manifest.input),
        "outputs": [
            {**_described(tensor), "least_sqnr_centred_db": _least_db(manifest, tensor.name)}
            for tensor in manifest.outputs
        ],
    }


def _described(tensor: TensorSpec) -> dict[str, Any]:
    shape = [1, *tensor.shape[1:]]
    return {"name": tensor.name, "dtype": tensor.dtype, "layout": tensor.layout, "shape": shape}


def _least_db(manifest: Manifest, output: str) -> float:
    """What the answers to all golden images must reach, taken together."""
    limit = limit_of(manifest)
    bounds = (limit.logits if output == LOGITS else limit.others).as_dict()
    return float(bounds.get("sqnr_centred_db", _FLOAT_DB))


def _patterns(spec: Preprocessing) -> Iterator[Probe]:
    """Patterns larger than what they are resized to: a bundle's own probes are small.

    They show a filter that leaves pixels out, and whose axis comes first.
    """
    height, width = spec.resize_hw
    for name, size in (
        ("pattern-large.png", (5 * height // 2 + 1, 13 * width // 4 + 2)),
        ("pattern-tall.png", (5 * height + 3, width // 2 + 1)),
    ):
        y, x = np.indices(size)
        planes = [(7 * x + 13 * y + x * y // (5 + channel)) % 256 for channel in range(3)]
        image = Image.fromarray(np.stack(planes, axis=-1).astype(np.uint8))
        encoded = io.BytesIO()
        image.save(encoded, "PNG")
        yield Probe(name, encoded.getvalue(), resized_from_image(image, spec))


def _write_probe(stage: Path, manifest: Manifest, probe: Probe) -> dict[str, Any]:
    """Write one probe, encoded, decoded and preprocessed; return its entry."""
    spec = manifest.preprocessing
    image = load_image(probe.data, background=spec.background)
    taken = input_from_resized(resized_from_image(image, spec)[None], manifest)
    files = {
        "file": _write(stage, f"files/{probe.name}", probe.data),
        "png": _write_png(stage, f"images/{probe.name}.png", image),
        "rgb": _write(stage, f"images/{probe.name}.bin", image.tobytes()),
        "pixels": _write(stage, f"pixels/{probe.name}.bin", _plain(taken)),
    }
    levels = int(spec.interpolation in _OF_SINES)
    return {
        "name": probe.name,
        **files,
        "height": image.height,
        "width": image.width,
        "tolerance": _tolerance(manifest, levels),  # of pixels made of png or rgb
        "file_tolerance": _tolerance(manifest, levels + probe.levels_allowed),  # made of file
    }


def _tolerance(manifest: Manifest, levels: int) -> float:
    """The largest difference of a value of the model's input that so many levels of 255 make."""
    if manifest.input.dtype == "uint8":
        return float(levels)
    table = pixel_levels(manifest.preprocessing).astype(np.float64)
    return (levels + _ROUNDING) * float(np.abs(table[:, -1] - table[:, 0]).max()) / 255


def _write_answer(stage: Path, manifest: Manifest, golden: Golden, index: int) -> dict[str, Any]:
    """Write one golden image with the reference's answers; return its entry."""
    resized, answers, stem = golden.images([index]), golden.answers([index]), f"answers/{index:04d}"
    logits = answers.get(LOGITS)
    return {
        "name": golden.names[index],
        "png": _write_png(stage, f"{stem}.png", Image.fromarray(resized[0])),
        "pixels": _write(stage, f"{stem}.bin", _plain(input_from_resized(resized, manifest))),
        "outputs": {
            output: _write(stage, f"{stem}.{output}.bin", _plain(values))
            for output, values in answers.items()
        },
        "top1": None if logits is None else int(logits[0].argmax()),
    }


def _plain(array: NDArray[Any]) -> bytes:
    return array.astype(array.dtype.newbyteorder("<")).tobytes()


def _write(stage: Path, name: str, content: bytes) -> str:
    (stage / name).parent.mkdir(exist_ok=True)
    (stage / name).write_bytes(content)
    return name


def _write_png(stage: Path, name: str, image: Image.Image) -> str:
    (stage / name).parent.mkdir(exist_ok=True)
    image.save(stage / name, "PNG")
    return name


def parser() -> cli.Parser:
    """The command line."""
    parser = cli.bundle_parser(
        "probes",
        "Write a bundle's probes and golden answers as plain files: PNG, little-endian arrays and "
        f"{INDEX_NAME} with tolerances. A test in C++, C#, Rust or Java then needs no npz reader.",
        "vit-edge probes bundles/mine-fp32 --out probes/",
    )
    cli.add_out(parser, "DIR", "the folder to write", required=True)
    parser.add_argument("--force", action="store_true", help="replace a folder of probes")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Write plain probes from the command line."""
    return cli.guarded(lambda: _run(parser().parse_args(argv)))


def _run(arguments: argparse.Namespace) -> int:
    written = probes(arguments.bundle, arguments.out, force=arguments.force)
    files = [file for file in written.folder.rglob("*") if file.is_file()]
    size = sum(file.stat().st_size for file in files)
    if arguments.json:
        result = {"probes": str(written.folder), "files": len(files), "bytes": size}
        print(json.dumps(result, indent=2))
        return 0
    print(f"probes   {written.folder} ({len(files)} files, {size / 1e6:.1f} MB)")
    print(f"images   {len(written.index['preprocessing'])}, for the preprocessing")
    print(f"answers  {len(written.index['answers'])}, of the reference")
    return 0


make_callable(__name__, __name__)

if __name__ == "__main__":
    sys.exit(main())
