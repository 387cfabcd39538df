"""A bundle opened in this process: its golden images, answered and compared.

Everything that measures a bundle goes this way: the bench, `build --tune` and recommend.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vit_edge.bundle import Bundle
from vit_edge.bundle.golden import Golden
from vit_edge.errors import BundleError
from vit_edge.images.preprocess import input_from_resized

if TYPE_CHECKING:  # what compares is imported after what is measured
    from vit_edge.parity.compare import Comparison
    from vit_edge.parity.targets import Target


def golden_pixels(bundle: Bundle, count: int) -> Any:
    """The model's input of so many golden images; they come again where there are fewer.

    Raises:
        BundleError: There is none.
    """
    with Golden(bundle.golden_path) as golden:
        if not len(golden):
            raise BundleError(f"{golden.path}: holds no images; export the bundle again")
        indices = [index % len(golden) for index in range(count)]
        return input_from_resized(golden.images(indices), bundle.manifest)


def compare_golden(
    bundle: Bundle,
    backend: Any,
    batches: Sequence[int],
    *,
    target: Target | None = None,
    images: Path | None = None,
) -> Comparison:
    """Compare answers with the reference's, by the limit of the bundle's precision.

    Args:
        bundle: The bundle.
        backend: That runs it.
        batches: Images of one run.
        target: What the answers must reach beside the limit.
        images: A golden file; the bundle's own by default.
    """
    from vit_edge.parity.compare import check_golden, compare_answers
    from vit_edge.parity.limits import limit_of

    with Golden(images or bundle.golden_path) as golden:
        check_golden(golden, bundle.manifest)
        return compare_answers(
            backend, golden, bundle.manifest, batches=batches,
            limit=limit_of(bundle.manifest), target=target,
        )  # fmt: skip
