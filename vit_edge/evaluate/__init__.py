"""Accuracy on labelled images, in one go or resumed."""

from typing import TYPE_CHECKING

from vit_edge.callables import make_callable

if TYPE_CHECKING:
    from vit_edge.evaluate.api import evaluate as evaluate

make_callable(__name__, "vit_edge.evaluate.api")
