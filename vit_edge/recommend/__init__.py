"""The bundle to ship, and the backend to run it with."""

from typing import TYPE_CHECKING

from vit_edge.callables import make_callable

if TYPE_CHECKING:
    from vit_edge.recommend.api import recommend as recommend

make_callable(__name__, "vit_edge.recommend.api")
