"""A bundle -> what runs fastest on this device: engines, and the record of a tuning."""

from typing import TYPE_CHECKING

from vit_edge.callables import make_callable

if TYPE_CHECKING:
    from vit_edge.build.api import build as build

make_callable(__name__, "vit_edge.build.api")
