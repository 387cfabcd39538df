"""Compare answers: across runtimes, precisions and machines."""

from typing import TYPE_CHECKING

from vit_edge.callables import make_callable

if TYPE_CHECKING:
    from vit_edge.parity.api import parity as parity

make_callable(__name__, "vit_edge.parity.api")
