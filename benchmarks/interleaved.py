"""Compare things that take time, taking turns, so that a noisy machine hurts all alike."""

from vit_edge.bench.measure import report, timings

__all__ = ["report", "timings"]
