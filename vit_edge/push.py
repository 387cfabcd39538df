"""vit-edge push: put a bundle on the Hugging Face hub, with a model card."""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from vit_edge import cli, hub
from vit_edge.bundle import Bundle
from vit_edge.bundle.bundle import LAYOUT_NAME, MANIFEST_NAME
from vit_edge.bundle.integrity import ensure_verified, layout_files
from vit_edge.callables import make_callable
from vit_edge.errors import HubError, IntegrityError, UsageError

CARD_NAME = "README.md"
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+", re.ASCII)
_SHOWN_LABELS = 20
# Statistics of parity.json that a card shows -> what it calls them.
_STATISTICS = {
    "relative": "largest difference, of the reference's largest value",
    "sqnr_centred_db": "signal to noise, centred, dB",
    "top1_agreement": "top-1 agreement",
}


@dataclass(frozen=True)
class Pushed:
    """Where a bundle is now."""

    repository: str
    revision: str  # the commit
    url: str

    @property
    def reference(self) -> str:
        """What Predictor opens."""
        return f"hf:{self.repository}@{self.revision}"


def push(
    bundle: str | os.PathLike[str] | Bundle,
    repository: str,
    *,
    private: bool = False,
    revision: str | None = None,
    license: str | None = None,
) -> Pushed:
    """Put a bundle on the hub in one commit; engines, which belong to this machine, stay here.

    Args:
        bundle: Its directory, or a Bundle that was read. Every byte of it is checked first.
        repository: ORG/NAME; it is made if it is not there.
        private: Make it private, if it is made.
        revision: A branch, which is made if it is not there; by default main.
        license: Of the weights, as the hub calls it: apache-2.0, mit, ...; it is in the card.

    Returns:
        The repository, the commit, and the page.

    Raises:
        UsageError: The repository is no ORG/NAME.
        IntegrityError: The bundle was changed.
        HubError: The hub does not answer or refuses.
        MissingExtraError: huggingface_hub is not installed.
    """
    if not _REPOSITORY.fullmatch(repository):
        raise UsageError(f"{repository!r} is no repository of the hub; write ORG/NAME")
    opened = Bundle.read(bundle)
    ensure_verified(opened, full=True)
    others = layout_files(opened)
    layout = opened.path / LAYOUT_NAME
    if others is None:
        raise IntegrityError(
            f"{layout}: the version that wrote it recorded no hashes. Export the bundle again, or "
            "remove the folder"
        )
    library = hub.library()
    if silent := hub.silence():
        raise HubError(f"{repository}: {silent}. Nothing was pushed")
    card = model_card(opened, repository, license)
    add = library.CommitOperationAdd
    files = [opened.path / name for name in (*opened.manifest.files, MANIFEST_NAME)]
    operations = [add(CARD_NAME, card.encode()), *(add(file.name, str(file)) for file in files)]
    # at the root, where transformers.js looks for them
    operations += [add(file.relative_to(layout).as_posix(), str(file)) for file in others]
    api = library.HfApi(library_name="vit_edge")
    try:
        with hub.hushed():
            api.create_repo(repository, private=private, exist_ok=True)
            if revision is not None:
                api.create_branch(repository, branch=revision, exist_ok=True)
            commit = api.create_commit(
                repository,
                operations,
                commit_message=f"{opened.manifest.variant} in {opened.manifest.precision}",
                revision=revision,
            )
    except Exception as error:  # whatever the HTTP library of the day raises
        raise HubError(f"{repository}: nothing was pushed: {hub.reason(error)}") from error
    return Pushed(repository, str(commit.oid), f"{api.endpoint}/{repository}")


def model_card(bundle: Bundle, repository: str, license: str | None = None) -> str:
    """Write README.md: the hub's fields as YAML, what the bundle is, and how it is used."""
    manifest = bundle.manifest
    size_mb = sum(record.size for record in manifest.files.values()) / 1e6
    name = repository.rpartition("/")[2]
    classes = f"{len(bundle.labels)} classes" if bundle.labels else "features, without classes"
    height, width = manifest.preprocessing.crop_hw
    lines = [
        "---",
        *_front_matter(bundle, license),
        "---",
        "",
        f"# {name}",
        "",
        f"A Vision Transformer ({manifest.variant}) in {manifest.precision} for small devices, "
        "made by vit_edge. It holds the ONNX graph, how "
        "images become pixels, the labels, and the answers of the reference to check itself by.",
        "",
        f"- images: {height}x{width} px; {classes}",
        f"- precision: {manifest.precision}, opset {manifest.opset}, {size_mb:.1f} MB",
        f"- weights: {_inline(manifest.checkpoint.source)}",
        "",
        "## Use",
        "",
        "```python",
        "from vit_edge import Predictor",
        "",
        f'with Predictor("hf:{repository}") as predictor:',
        '    print(predictor.predict("photo.jpg").label)',
        "```",
        "",
        f'`pip install "vit-edge[cpu]" huggingface_hub`. `vit-edge parity hf:{repository}` checks '
        "the answers on your device.",
        "",
        "## Parity",
        "",
        *_parity(bundle),
    ]
    if bundle.labels:
        shown = ", ".join(_inline(label) for label in bundle.labels[:_SHOWN_LABELS])
        more = len(bundle.labels) - _SHOWN_LABELS
        lines += ["", "## Classes", "", shown + (f" and {more} more" if more > 0 else "")]
    return "\n".join(lines) + "\n"


def base_model(bundle: Bundle) -> str | None:
    """The hub's id of the model that the weights were published as; None if it is not known."""
    name, _, reference = bundle.manifest.checkpoint.source.partition(":")
    if bundle.manifest.checkpoint.revision is None or name not in ("hf", "timm", "open_clip"):
        return None  # a folder, a file or a module
    published = f"timm/{reference}" if name == "timm" and "/" not in reference else reference
    return published if _REPOSITORY.fullmatch(published) else None


def _front_matter(bundle: Bundle, license: str | None) -> Iterator[str]:
    """The fields of the hub's model cards; JSON's text is YAML's as well."""
    manifest = bundle.manifest
    fields: dict[str, Any] = {
        "license": license,
        "base_model": base_model(bundle),
        "library_name": "vit_edge",
        "pipeline_tag": "image-classification" if bundle.labels else "image-feature-extraction",
        "tags": ["vit_edge", "onnx", "vision-transformer", manifest.precision],
    }
    for field, value in fields.items():
        if value is not None:
            yield f"{field}: {json.dumps(value)}"


def _parity(bundle: Bundle) -> Iterator[str]:
    """What the gate found at export, as a table."""
    parity = bundle.parity()
    rows = parity.get("comparisons", [])
    known = {key: words for key, words in _STATISTICS.items()
             if any(row.get(key) is not None for row in rows)}  # fmt: skip
    verdict = "holds" if parity["passed"] else "does not hold"
    yield f"Parity with the reference in {bundle.manifest.reference_dtype} {verdict}:"
    yield ""
    yield "| output | batch | images | " + " | ".join(known.values()) + " |"
    yield "|---" * (3 + len(known)) + "|"
    for row in rows:
        values = ("-" if row.get(key) is None else f"{row[key]:.4g}" for key in known)
        cells = (str(row.get(key, "-")) for key in ("output", "batch", "images"))
        yield f"| {' | '.join([*cells, *values])} |"
    if parity.get("simulated"):
        yield ""
        yield f"Simulated: {_inline(str(parity['simulated']))}"


def _inline(text: str) -> str:
    """Text that steers no Markdown and no HTML."""
    return re.sub(r"([\\`*_{}\[\]<>#|!])", r"\\\1", cli.printable(text))


def parser() -> cli.Parser:
    """The command line."""
    parser = cli.bundle_parser(
        "push",
        "Put a bundle on the Hugging Face hub, with a model card, in one commit. Engines stay "
        "here. `hf auth login` or HF_TOKEN opens the hub.",
        "vit-edge push bundles/mine-int8 my-org/mine-int8 --license apache-2.0",
    )
    parser.add_argument("repository", metavar="ORG/NAME", help="made if it is not there")
    parser.add_argument("--private", action="store_true", help="make it private, if it is made")
    parser.add_argument("--revision", metavar="BRANCH", help="made if it is not there")
    parser.add_argument("--license", metavar="ID", help="of the weights: apache-2.0, mit, ...")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Push from the command line."""
    return cli.guarded(lambda: _run(parser().parse_args(argv)))


def _run(arguments: argparse.Namespace) -> int:
    pushed = push(
        arguments.bundle,
        arguments.repository,
        private=arguments.private,
        revision=arguments.revision,
        license=arguments.license,
    )
    if arguments.json:
        print(json.dumps(asdict(pushed) | {"reference": pushed.reference}, indent=2))
    else:
        print(f"pushed   {pushed.url}\nuse      Predictor({pushed.reference!r})")
    return 0


make_callable(__name__, __name__)

if __name__ == "__main__":
    sys.exit(main())
