"""Exact changes of a float32 graph that make it easier to quantize."""
