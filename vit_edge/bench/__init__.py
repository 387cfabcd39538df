"""Measuring: time (measure, in processes of their own: worker) and memory (memory)."""
