"""Measuring: time (measure) and memory (memory)."""
