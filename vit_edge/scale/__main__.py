"""vit-edge batch BUNDLE INPUT... --out DIR: answers for millions of images, in Parquet."""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from typing import TYPE_CHECKING

from vit_edge import cli
from vit_edge.errors import MissingExtraError
from vit_edge.predictor import DEFAULT_TOP_K
from vit_edge.scale import COLUMNS, ROWS

if TYPE_CHECKING:
    from vit_edge.scale.batch import BatchResult
    from vit_edge.scale.shards import Shard

_EPILOG = """\
INPUT is one of
  a directory           every file below it that is named like an image
  a .parquet file       with a column path, bytes or image; its other columns stay
  a .tar or .tar.gz     its images, as WebDataset has them
  a .txt file, or -     a list of paths or URLs, one a line
  s3://BUCKET/FOLDER/   and what else pyarrow or fsspec opens

Listing a hundred million files is slow. A Parquet file of paths, written once, is the way there.
A row of an image that cannot be used has its error, and no label.

exit codes: 0 done, 2 wrong usage, 3 a file cannot be read; with --strict also where rows failed

examples
  vit-edge batch bundles/cifar10 photos/ -o answers
  vit-edge batch bundles/cifar10 photos.parquet -o answers --columns label,features --resume
  vit-edge batch bundles/cifar10 shards/*.tar -o answers --engine ray --ray-address auto
"""


def parser() -> cli.Parser:
    """The command line."""
    command_line = cli.bundle_parser(
        "batch",
        "Answer every image of a large job, in shards that are there whole or not at all.",
        "",
    )
    command_line.epilog = _EPILOG
    command_line.add_argument("inputs", metavar="INPUT", nargs="+", help="see below")
    command_line.add_argument(
        "-o", "--out", required=True, metavar="DIR", help="where the shards go; or a URL"
    )
    command_line.add_argument(
        "--columns",
        default=",".join(COLUMNS),
        metavar="A,B",
        help="of label, index, score, top, and the bundle's outputs, such as features; "
        f"default: {','.join(COLUMNS)}",
    )
    command_line.add_argument(
        "--top-k", type=int, default=DEFAULT_TOP_K, metavar="K", help="classes of top; default: 5"
    )
    command_line.add_argument(
        "--images",
        metavar="COLUMN",
        help="of a Parquet file, the column with encoded bytes or paths; "
        "default: bytes, image or path",
    )
    command_line.add_argument(
        "--prefix", default="", metavar="P", help="in front of the columns that are added"
    )
    command_line.add_argument(
        "--resume", action="store_true", help="go on where an earlier run was ended"
    )
    command_line.add_argument(
        "--strict", action="store_true", help="exit with 3 where an image could not be used"
    )
    command_line.add_argument(
        "--shard-rows", type=int, default=ROWS, metavar="N", help=f"default: {ROWS}"
    )
    command_line.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="processes; default: 1, which uses every CPU; with Ray one for each CPU",
    )
    command_line.add_argument(
        "--engine", choices=("local", "ray"), default="local", help="default: local"
    )
    command_line.add_argument(
        "--ray-address", metavar="A", help="of a cluster that runs, such as auto"
    )
    cli.add_backend(command_line)
    return command_line


def main(argv: list[str] | None = None) -> int:
    """Answer from the command line."""
    return cli.guarded(lambda: _run(parser().parse_args(argv)))


def _run(arguments: argparse.Namespace) -> int:
    if importlib.util.find_spec("pyarrow") is None:
        raise MissingExtraError('batch writes Parquet: pip install "vit-edge[cpu,batch]"')
    from vit_edge.scale.batch import as_json, batch

    result = batch(
        arguments.bundle,
        arguments.inputs,
        out=arguments.out,
        columns=[name.strip() for name in arguments.columns.split(",")],
        resume=arguments.resume,
        workers=arguments.workers,
        engine=arguments.engine,
        ray_address=arguments.ray_address,
        shard_rows=arguments.shard_rows,
        progress=_Counter(),
        images=arguments.images,
        prefix=arguments.prefix,
        top_k=arguments.top_k,
        backend=arguments.backend,
    )
    print(json.dumps(as_json(result)) if arguments.json else _line(result))
    return 3 if arguments.strict and result.failed else 0


class _Counter:
    """Says after each shard how far it is."""

    def __init__(self) -> None:
        self._images = self._failed = 0

    def __call__(self, shard: Shard) -> None:
        self._images += shard.rows
        self._failed += shard.failed
        if shard.broken is not None:
            print(shard.broken, file=sys.stderr, flush=True)
            return
        speed = f"{shard.rows / max(shard.seconds, 1e-9):.0f} images/s"
        last = "was there already" if shard.resumed else speed
        print(
            f"{self._images:,} images, {self._failed:,} failed; the last shard: {last}",
            file=sys.stderr,
            flush=True,
        )


def _line(result: BatchResult) -> str:
    return (
        f"{result.out}: {len(result.shards)} shards, {result.rows:,} images, {result.failed:,} "
        f"failed, {result.images_per_second:.0f} images/s"
    )


if __name__ == "__main__":
    sys.exit(main())
