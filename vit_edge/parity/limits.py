"""What a comparison allows, and why."""

from __future__ import annotations

from dataclasses import dataclass

from vit_edge.errors import UsageError


@dataclass(frozen=True)
class Limit:
    """The largest max |difference| / max |reference| that passes, per output."""

    relative: float
    reason: str


# Measured against the reference: onnxruntime 1.31 is off by 3e-7 (vit-cifar10) to 3e-6 (large,
# huge) in logits and features alike. What must not pass, on vit-cifar10: LayerNorm epsilon 1e-12
# for 1e-6 3e-5, epsilon 1e-5 for 1e-6 3e-4, tanh GELU 7e-4, a dropped bias 3e-3
# (tests/parity/test_limits.py).
LIMITS: dict[str, Limit] = {
    "fp32": Limit(1e-5, "float32 rounding over up to 32 blocks, with a factor of about 3 to spare"),
}


def limit_for(precision: str) -> Limit:
    """Look the limit up.

    Raises:
        UsageError: No such precision.
    """
    if precision not in LIMITS:
        raise UsageError(f"no parity limit for precision {precision!r}; known: {list(LIMITS)}")
    return LIMITS[precision]
