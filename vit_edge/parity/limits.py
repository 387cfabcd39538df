"""What a comparison allows, and why."""

from __future__ import annotations

from dataclasses import dataclass

from vit_edge.errors import UsageError


@dataclass(frozen=True)
class Limit:
    """The largest max |difference| / max |reference| that passes, per output."""

    relative: float
    reason: str


# Measured on onnxruntime 1.31 against the float64 reference: 1e-7 (testing) to 1.5e-6 (base, large,
# huge) for logits, features and tokens alike; a wrong LayerNorm epsilon, a dropped bias or a tanh
# GELU lies above 1e-4.
LIMITS: dict[str, Limit] = {
    "fp32": Limit(1e-5, "float32 rounding over up to 32 blocks, with a factor of about 7 to spare"),
}


def limit_for(precision: str) -> Limit:
    """Look the limit up.

    Raises:
        UsageError: No such precision.
    """
    if precision not in LIMITS:
        raise UsageError(f"no parity limit for precision {precision!r}; known: {list(LIMITS)}")
    return LIMITS[precision]
