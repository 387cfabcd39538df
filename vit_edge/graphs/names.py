"""Names that nothing else in a graph has.

Exporters name nodes after modules, and several nodes share a module: torch.nn.MultiheadAttention
multiplies by two weights, and one block may be called twice. So no pass makes a name of its own
from a scope. It asks for one here.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Sequence

import onnx_ir


class Names:
    """Gives names, each of them once."""

    def __init__(self, taken: Iterable[str | None] = ()) -> None:
        """Begin with names that are not given."""
        self._taken = set(taken)

    @classmethod
    def of(cls, model: onnx_ir.Model) -> Names:
        """Begin with every name of a graph: a node's and a value's are never the same."""
        graph = model.graph
        names = cls(value.name for value in (*graph.inputs, *graph.initializers.values()))
        for node in graph.all_nodes():
            names._taken.add(node.name)
            names._taken.update(value.name for value in node.outputs)
        return names

    def fresh(self, wish: str) -> str:
        """Give `wish`, or `wish_1`, `wish_2` ... if that is taken."""
        numbered = (f"{wish}_{number}" for number in itertools.count(1))
        name = next(n for n in itertools.chain([wish], numbered) if n not in self._taken)
        self._taken.add(name)
        return name


def tell_apart(short: Sequence[str], long: Sequence[str]) -> list[str]:
    """Name things by their short names, and those by their long ones that share a short one."""
    counts, names = Counter(short), Names()
    wishes = (
        brief if counts[brief] == 1 else full for brief, full in zip(short, long, strict=True)
    )
    return [names.fresh(wish) for wish in wishes]
