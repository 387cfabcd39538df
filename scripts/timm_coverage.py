"""Which of timm's pretrained plain ViTs this package takes, decided by its own reader.

    python scripts/timm_coverage.py            needs timm; takes a minute and no weights
    python scripts/timm_coverage.py --answers  compares answers as well, of one block each

Every tag of timm's vision_transformer.py and deit.py is built on the meta device. Its config.json,
as timm writes it, and the names and shapes of its tensors go to the reader that a file goes to.
What is taken must agree with timm's model in all that no tensor shows.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import _hub, _registry, vision_transformer

from vit_edge.bundle.architecture import Architecture
from vit_edge.checkpoints import Request
from vit_edge.checkpoints.assemble import Foreign, checkpoint_from
from vit_edge.checkpoints.fields import Fields
from vit_edge.checkpoints.files import Place, Weights
from vit_edge.checkpoints.sources import timm as reader
from vit_edge.checkpoints.tensors import LazyTensor, check_keys
from vit_edge.errors import CheckpointError
from vit_edge.models.layers import activate
from vit_edge.models.vit import vit_from_weights

MODULES = ("vision_transformer", "deit")
CLOSE = 1e-5  # of the largest answer, in float32


@dataclass(frozen=True)
class Verdict:
    """What becomes of one tag."""

    tag: str
    module: str
    refused: str | None  # the reason; None: taken
    wrong: str | None = None  # taken, but this differs from timm


def tags() -> Iterator[tuple[str, str]]:
    """Yield each pretrained tag and the module of timm that it is in."""
    for tag in timm.list_pretrained():
        module = _registry._model_to_module.get(timm.models.get_arch_name(tag))
        if module in MODULES:
            yield tag, module


def foreign_of(model: Any, **model_args: Any) -> Foreign:
    """Understand a model of timm's as if it lay on disk.

    Raises:
        CheckpointError: It is refused.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "config.json")
        _hub.save_config_for_hf(model, file, model_args=model_args or None)
        config = json.loads(file.read_text(encoding="utf-8"))
    tensors = {
        name: LazyTensor(tuple(tensor.shape), "float32", partial(torch.clone, tensor))
        for name, tensor in model.state_dict().items()
    }
    path = Path("timm")
    weights = Weights(path, tensors, ())
    place = Place(path, str(config["architecture"]))
    foreign = reader.understand(Fields(config, "timm"), weights, place, "timm", Request())
    problems = foreign.architecture.problems()
    if problems:
        raise CheckpointError("; ".join(problems))
    check_keys(foreign.rules, foreign.tensors, foreign.where, foreign.ignored)
    return foreign


def disagreement(model: Any, a: Architecture) -> str | None:
    """Name what timm's model does and no tensor shows, where the reader took it for another."""
    block = model.blocks[0]
    probe = torch.linspace(-4, 4, 101)
    same_curve = torch.equal(block.mlp.act(probe), activate(probe, a.activation))
    pooling = {"token": "class", "avg": "mean"}.get(model.global_pool, model.global_pool)
    pooling = "class+distilled" if hasattr(model, "head_dist") else pooling
    facts = {
        "blocks": (type(block), vision_transformer.Block),
        "attention": (type(block.attn).__name__, "Attention"),
        "heads": (block.attn.num_heads, a.heads),
        "epsilon": (block.norm1.eps, a.layer_norm_eps),
        "activation": (same_curve, True),
        "pooling": (pooling, a.pooling),
        "prefix": (model.num_prefix_tokens, a.prefix_tokens),
        "pooled prefix": (model.pool_include_prefix, False),
        "size": (tuple(model.patch_embed.img_size), a.image_hw),
    }
    different = [
        f"{n}: {theirs}, not {ours}" for n, (theirs, ours) in facts.items() if theirs != ours
    ]
    return "; ".join(different) or None


def difference(tag: str) -> float:
    """Return how far the answers of one block with random weights are from timm's."""
    side = 4 * int(re.findall(r"patch(\d+)", timm.models.get_arch_name(tag) + "_patch16")[0])
    torch.manual_seed(0)
    model = timm.create_model(tag, pretrained=False, depth=1, img_size=side).eval()
    for parameter in model.parameters():
        offset = 0.5 if parameter.ndim == 1 else 0.0
        parameter.data.normal_(offset, 0.3 if parameter.ndim == 1 else 0.05)
    foreign = foreign_of(model, img_size=side)
    checkpoint = checkpoint_from(foreign, Request())
    pixels = torch.randn(2, 3, side, side)
    with torch.no_grad():
        expected = model(pixels)
        if isinstance(expected, tuple):  # of DeiT's two heads
            expected = (expected[0] + expected[1]) / 2
        ours = vit_from_weights(checkpoint.architecture, dict(checkpoint.weights))(pixels)
    found = ours.pre_logits if ours.logits is None else ours.logits
    return float((found - expected).abs().max() / expected.abs().max())


def verdict(tag: str, module: str, answers: bool) -> Verdict:
    """Decide about one tag."""
    with torch.device("meta"):
        model = timm.create_model(tag, pretrained=False)
    try:
        foreign = foreign_of(model)
    except CheckpointError as error:
        reason = str(error).removeprefix("timm: ")
        return Verdict(
            tag,
            module,
            re.sub(
                r".* It has:?\s+|.*problem\(s\):\s+(architecture: )?", "", reason, flags=re.DOTALL
            ),
        )
    wrong = disagreement(model, foreign.architecture)
    if wrong is None and answers:
        far = difference(tag)
        wrong = None if far <= CLOSE else f"answers differ by {far:.1e}"
    return Verdict(tag, module, None, wrong)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--answers", action="store_true", help="compare one block's answers")
    arguments = parser.parse_args()
    verdicts = [verdict(tag, module, arguments.answers) for tag, module in tags()]
    refused = Counter(v.refused.partition(":")[0] for v in verdicts if v.refused)
    print(f"timm {timm.__version__}")
    for module in MODULES:
        all_of_it = [v for v in verdicts if v.module == module]
        taken = sum(v.refused is None and v.wrong is None for v in all_of_it)
        print(f"{module}.py: taken {taken} of {len(all_of_it)}")
    for reason, count in refused.most_common():
        print(f"  refused {count:3}: {reason}")
    wrong = [v for v in verdicts if v.wrong]
    for v in wrong:
        print(f"  WRONG {v.tag}: {v.wrong}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
