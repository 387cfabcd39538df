"""What turns templates into a page: every text is escaped, and nothing that is missing is blank."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vit_edge.report.extra import needed

SHARED = Path(__file__).parent / "templates"  # page.css, figures.html


def environment(templates: Path) -> Any:
    """Make jinja2's environment for a folder of templates, with those that all pages share.

    The filter `svg` lets through what `drawing.svg` made.

    Raises:
        MissingExtraError: jinja2 is not installed.
    """
    jinja2, markup = needed("jinja2"), needed("markupsafe").Markup
    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader([templates, SHARED]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters["svg"] = markup
    return made


def writable(text: str) -> str:
    """The text, as UTF-8 can hold it: half a pair of surrogates (a bad file name) cannot."""
    return text.encode("utf-8", "replace").decode()
