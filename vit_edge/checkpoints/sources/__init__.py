"""One module is one kind of checkpoint; see vit_edge.checkpoints."""
