"""Fill templates to a page: every text is escaped, and nothing that is missing is blank."""

from __future__ import annotations

from pathlib import Path

from vit_edge.report.extra import needed

SHARED = Path(__file__).parent / "templates"  # base.html, parts.html, page.css


def filled(templates: Path, **values: object) -> str:
    """Fill page.html of a folder of templates, which extends the base.html that all pages share.

    The filter `svg` lets through what `drawing.svg` made.

    Args:
        templates: The folder.
        values: What the template shows, by name.

    Returns:
        The page, as UTF-8 can hold it: half a pair of surrogates (a bad file name) cannot.

    Raises:
        MissingExtraError: jinja2 is not installed.
    """
    jinja2, markup = needed("jinja2"), needed("markupsafe").Markup
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([templates, SHARED]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["svg"] = markup
    text: str = environment.get_template("page.html").render(values)
    return text.encode("utf-8", "replace").decode()
