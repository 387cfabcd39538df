"""The blocks of code in a page of Markdown."""

from __future__ import annotations

import re
from collections.abc import Mapping

BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(page: str, language: str) -> list[str]:
    """Those in one language, in their order."""
    return [body for found, body in BLOCK.findall(page) if found == language]


def shortened(command: str, shorter: Mapping[str, str]) -> str:
    """Replace what a reader waits for and a test need not."""
    for shown, run_here in shorter.items():
        command = command.replace(shown, run_here)
    return command
