"""vit_edge.export, publishing what misses its precision's parity limit too: for timing alone.

    python benchmarks/ungated.py --variant base-patch16-224 --precision int4 ...

Random weights have none of the structure that int4 is rounded along, and rightly fail its limit.
What they cost can be measured all the same; vit_edge.bench judges the answers by the limit as it
is, and reports them as WRONG.
"""

from __future__ import annotations

import dataclasses
import sys
from unittest import mock

from vit_edge.bundle.manifest import Manifest
from vit_edge.export import __main__ as export
from vit_edge.export import pipeline
from vit_edge.parity.limits import Limit, limit_of
from vit_edge.parity.targets import Target


def without_bounds(manifest: Manifest) -> Limit:
    """The limit of a bundle that only NaN and Inf exceed."""
    nothing = Target(())
    return dataclasses.replace(
        limit_of(manifest), logits=nothing, others=nothing, top1_agreement=None
    )


if __name__ == "__main__":
    with mock.patch.object(pipeline, "limit_of", without_bounds):
        sys.exit(export.main())
