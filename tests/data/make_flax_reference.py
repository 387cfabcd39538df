"""Write flax/: a FlaxViTForImageClassification as it saves itself, its pixels and its logits.

Run where transformers 4 and flax are installed:  python -m tests.data.make_flax_reference
"""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np
from transformers import FlaxViTForImageClassification, ViTConfig

FOLDER = Path(__file__).with_name("flax")
CONFIG = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "image_size": 12,
    "patch_size": 4,
    "num_labels": 3,
}


def main() -> None:
    model = FlaxViTForImageClassification(ViTConfig(**CONFIG), seed=0)
    leaves, structure = jax.tree_util.tree_flatten(model.params)
    generator = np.random.default_rng(0)
    drawn = [generator.normal(0, 0.3, leaf.shape).astype(np.float32) for leaf in leaves]
    model.params = jax.tree_util.tree_unflatten(structure, drawn)
    model.save_pretrained(FOLDER)
    pixels = generator.normal(0, 1, (2, 3, 12, 12)).astype(np.float32)
    np.savez(FOLDER / "answers.npz", pixels=pixels, logits=np.asarray(model(pixels).logits))


if __name__ == "__main__":
    main()
