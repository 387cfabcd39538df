"""One module is one precision; see vit_edge.quantize."""
