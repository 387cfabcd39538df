"""The list of families in docs/checkpoints.md, made of the table in vit_edge/variants.py.

python -m tests.support.families        write it
"""

from __future__ import annotations

from pathlib import Path

from vit_edge.variants import FAMILIES

PAGE = Path(__file__).parents[2] / "docs" / "checkpoints.md"
START, END = (
    "<!-- families: written by tests/support/families.py -->\n\n",
    "\n<!-- families end -->",
)


def families_list() -> str:
    """The table as Markdown."""
    rows = ["| family | paper | beside the plain ViT | published as |", "|---|---|---|---|"]
    rows += [f"| {f.name} | {f.paper} | {f.differs} | {f.published} |" for f in FAMILIES]
    return "\n".join(rows) + "\n"


def listed(page: str) -> str:
    """What stands between the two marks of a page."""
    return page.partition(START)[2].partition(END)[0]


def main() -> None:
    page = PAGE.read_text(encoding="utf-8")
    before, rest = page.split(START)
    _, after = rest.split(END)
    PAGE.write_text(before + START + families_list() + END + after, encoding="utf-8")


if __name__ == "__main__":
    main()
