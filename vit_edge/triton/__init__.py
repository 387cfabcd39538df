"""Bundles -> a model repository of NVIDIA's Triton Inference Server."""

from typing import TYPE_CHECKING

from vit_edge.callables import make_callable

if TYPE_CHECKING:
    from vit_edge.triton.repository import triton as triton

make_callable(__name__, "vit_edge.triton.repository")
