"""vit-edge predict BUNDLE INPUT...: what the model sees in each image."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence

from vit_edge import cli
from vit_edge.cli.progress import Progress
from vit_edge.errors import UsageError
from vit_edge.images.inputs import STDIN, check_inputs, images_of, listed_images
from vit_edge.images.preprocess import DECODINGS
from vit_edge.images.walk import Skipped
from vit_edge.predict.writing import Answer, Write, as_json, check_out, writing
from vit_edge.predictor import DEFAULT_TOP_K, Failure, Prediction, Predictor

FEATURES = "features"


def parser() -> cli.Parser:
    """The command line."""
    command_line = cli.bundle_parser(
        "predict",
        "Classify images with a bundle, or embed them. An INPUT is a file, a folder (its images "
        "and those below), a pattern in quotes ('photos/**/*.jpg'), or - for a list on stdin. A "
        "bad image is reported and does not stop the others; the exit code is 3 then. With --json "
        "one object a line.",
        "vit-edge predict bundles/base-patch16-224-fp32 cat.jpg --top-k 3\n"
        "         vit-edge predict bundles/base-patch16-224-fp32 photos/ --out labels.csv\n"
        "         vit-edge predict bundles/base-patch16-224-fp32 photos/ --embed --out all.npz\n"
        "         find photos -name '*.jpg' -print0 | vit-edge predict BUNDLE - -0 --json\n"
        f"other verbs: {', '.join(verb for verb in cli.VERBS if verb != 'predict')}\n"
        "             (vit-edge VERB --help)",
    )
    command_line.add_argument(
        "inputs", metavar="INPUT", nargs="+", help="files, folders, patterns, or - for stdin"
    )
    cli.add_backend(command_line)
    command_line.add_argument(
        "--top-k", type=int, metavar="K", help=f"classes to rank; default: {DEFAULT_TOP_K}"
    )
    command_line.add_argument(
        "--embed", action="store_true", help="give the features of each image instead of labels"
    )
    cli.add_out(
        command_line,
        "FILE",
        "write the answers there: .jsonl or .csv; with --embed also .npz, or .npy with the paths "
        "in NAME.paths.npy. It appears when all is done",
    )
    command_line.add_argument(
        "--batch", type=int, metavar="N", help="images at a time; default: 8, or the bundle's limit"
    )
    command_line.add_argument(
        "-0", "--null", action="store_true", help="the list on stdin has a NUL behind each path"
    )
    command_line.add_argument(
        "--decoding",
        choices=DECODINGS,
        default="exact",
        help="fast: decode large JPEGs at a fraction of their size; default: exact",
    )
    return command_line


def main(argv: list[str] | None = None) -> int:
    """Predict from the command line."""
    return cli.guarded(lambda: _run(parser().parse_args(argv)))


def _run(arguments: argparse.Namespace) -> int:
    _check(arguments)
    total, out = check_inputs(arguments.inputs), arguments.out
    skipped = Skipped()
    with Predictor(arguments.bundle, arguments.backend, decoding=arguments.decoding) as predictor:
        if predictor.bundle.manifest.labels_invented and not arguments.embed:
            print("labels are invented: the model's files name no class", file=sys.stderr)
        with contextlib.ExitStack() as stack:
            answers = _answers(predictor, arguments, skipped)
            write: Write = _shown_as_json if arguments.json else _shown
            if out is not None:
                width = _width(predictor, arguments)
                write = stack.enter_context(writing(out, width, embed=arguments.embed))
            seen = out is None and sys.stdout.isatty()
            progress = stack.enter_context(Progress("predicting", total, quiet=seen))
            count = _Count()
            for image, answer in answers:
                write(image, answer)
                count.add(answer)
                if isinstance(answer, Failure) and (out is not None or not arguments.json):
                    progress.tell(f"{type(answer.error).__name__}: {answer.error}")
                progress(1)
            if not count.images:
                raise UsageError("the list on stdin names no image")
    _tell(count, arguments)
    return 3 if count.failed or skipped.refused else 0


def _check(arguments: argparse.Namespace) -> None:
    """Refuse options that contradict each other, before any work."""
    if arguments.out is not None:
        check_out(arguments.out, embed=arguments.embed)
    if arguments.null and STDIN not in arguments.inputs:
        raise UsageError("--null is for a list on stdin; name it: -")
    if arguments.embed and arguments.top_k is not None:
        raise UsageError("--top-k ranks classes, and --embed gives features; give one of them")
    if arguments.top_k is not None and arguments.top_k < 1:
        raise UsageError(f"--top-k must be 1 or more, not {arguments.top_k}")


class _Count:
    """How many images were asked, how many failed, and since when."""

    def __init__(self) -> None:
        self.images = self.failed = 0
        self._started = time.perf_counter()

    def add(self, answer: Answer) -> None:
        self.images += 1
        self.failed += isinstance(answer, Failure)

    def as_dict(self) -> dict[str, float]:
        seconds = time.perf_counter() - self._started
        pace = {"seconds": seconds, "images_per_s": self.images / max(seconds, 1e-9)}
        return {"images": self.images, "failed": self.failed, **pace}


def _answers(
    predictor: Predictor, arguments: argparse.Namespace, skipped: Skipped
) -> Iterator[tuple[str, Answer]]:
    """Each image and what comes of it; the call is checked now."""
    batch, most = arguments.batch, predictor.bundle.manifest.max_batch
    if batch is not None and not 1 <= batch <= most:
        raise UsageError(f"--batch must lie in 1..{most}, which the bundle takes, not {batch}")
    asked: deque[str] = deque()  # at most three batches, which the predictor reads ahead

    def images() -> Iterator[str]:
        for image in _images(arguments.inputs, skipped, null=arguments.null):
            asked.append(image)
            yield image

    top_k, given = arguments.top_k or DEFAULT_TOP_K, images()
    if not arguments.embed:
        answers = predictor.stream(given, top_k, batch_size=batch, on_error="record")
        return ((asked.popleft(), answer) for answer in answers)
    rows = predictor.run(given, [FEATURES], batch_size=batch, on_error="record")
    values = (row if isinstance(row, Failure) else row.outputs[FEATURES] for row in rows)
    return ((asked.popleft(), answer) for answer in values)


def _images(inputs: Sequence[str], skipped: Skipped, *, null: bool) -> Iterator[str]:
    for word in inputs:
        if word == STDIN:
            yield from listed_images(sys.stdin.buffer, null=null)
        else:
            yield from images_of(word, skipped)


def _width(predictor: Predictor, arguments: argparse.Namespace) -> int:
    """How many values one image's answer has."""
    if arguments.embed:
        tensor = predictor.bundle.manifest.output(FEATURES)
        return 0 if tensor is None else int(tensor.shape[-1] or 0)
    return min(arguments.top_k or DEFAULT_TOP_K, len(predictor.labels))


def _shown(image: str, answer: Answer) -> None:
    """Print labels for a reader; features are for programs."""
    if isinstance(answer, Prediction):
        print(cli.printable(answer.source))
        for ranked in answer.top:
            value = answer.scores == "none"
            score = f"{ranked.score:10.4g}" if value else f"{ranked.score:7.2%}"
            print(f"  {score}  {ranked.label}")
    elif not isinstance(answer, Failure):
        _shown_as_json(image, answer)


def _shown_as_json(image: str, answer: Answer) -> None:
    print(as_json(image, answer), flush=True)


def _tell(count: _Count, arguments: argparse.Namespace) -> None:
    """Say where the answers are, and how fast they came."""
    told = count.as_dict()
    if arguments.out is not None and arguments.json:
        print(json.dumps({"out": str(arguments.out), **told}))
    elif arguments.out is not None:
        print(f"answers    {arguments.out}")
    if arguments.out is not None or count.images > 1:
        failed = f", {count.failed:,} of them could not be read" if count.failed else ""
        print(
            f"{count.images:,} images in {told['seconds']:.1f} s{failed}: "
            f"{told['images_per_s']:.3g} images a second",
            file=sys.stderr,
        )


if __name__ == "__main__":
    sys.exit(main())
