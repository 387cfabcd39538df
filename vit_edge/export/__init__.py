"""From a checkpoint to a verified bundle. A leaf: nobody imports it."""

from typing import TYPE_CHECKING

from vit_edge.callables import make_callable

if TYPE_CHECKING:
    from vit_edge.export.api import export as export

make_callable(__name__, "vit_edge.export.api")
