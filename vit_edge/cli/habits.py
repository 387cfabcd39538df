"""Words that people bring from other tools, and slips of the pen: what to type instead."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vit_edge.cli.parser import Parser
    from vit_edge.cli.words import Line


def advice(parser: Parser, line: Line) -> str | None:
    """Say what is wrong with a line, and what to type instead; None if nothing is."""
    unknown = [item for item in line.items if item.key is not None and item.action is None]
    if not unknown:
        return None
    return "error: no such option: " + ", ".join(item.text[0] for item in unknown)
