"""Adapters of PEFT: a few matrices that change another model, and no model by themselves."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from vit_edge.checkpoints.text import one_line
from vit_edge.errors import CheckpointError

ADAPTER_CONFIG = "adapter_config.json"
_MATRICES = ("lora_A", "lora_B", "lora_magnitude_vector", "hada_w1_a", "ia3_l", "lokr_w1")


def refuse_adapter(path: Path) -> None:
    """Refuse a directory or a weight file that is an adapter alone.

    Raises:
        CheckpointError: It is; the message has the line that merges it into its model.
    """
    folder = path if path.is_dir() else path.parent
    config = folder / ADAPTER_CONFIG
    alone = path.name.startswith("adapter_model") if path.is_file() else not _has_model(folder)
    if alone and config.is_file():
        raise CheckpointError(f"{path}: {advice(config)}")


def refuse_unmerged(names: Iterable[str], where: str) -> None:
    """Refuse weights that an adapter was not merged into.

    Raises:
        CheckpointError: There is a matrix of an adapter among them; one is named.
    """
    found = next((n for n in names if not set(_MATRICES).isdisjoint(n.split("."))), None)
    if found is not None:
        raise CheckpointError(
            f"{where}: holds an adapter of PEFT that is not merged ({one_line(found)}). Merge it: "
            "model.merge_and_unload().save_pretrained('merged')"
        )


def advice(config: Path) -> str:
    """Say what an adapter is, and which line merges it into the model that it was made for."""
    try:
        base = json.loads(config.read_text(encoding="utf-8"))["base_model_name_or_path"]
    except (OSError, ValueError, RecursionError, KeyError, TypeError):
        base = None
    base = one_line(base) if isinstance(base, str) and base else "BASE_MODEL"
    return (
        f"an adapter of PEFT alone, not a model: it changes {base}. Merge them, then export "
        "'merged', with preprocessor_config.json of the base model beside it:\n"
        '  python -c "from peft import PeftModel; '
        "from transformers import AutoModelForImageClassification as Model; "
        f"model = Model.from_pretrained({base!r}, num_labels=CLASSES, "
        "ignore_mismatched_sizes=True); "
        f"PeftModel.from_pretrained(model, {str(config.parent)!r}).merge_and_unload()"
        ".save_pretrained('merged')\""
    )


def _has_model(folder: Path) -> bool:
    return (folder / "config.json").is_file()
