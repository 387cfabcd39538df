"""How long the sentences of the documents are.

    python scripts/prose.py                 every page: words, mean sentence, longest sentence
    python scripts/prose.py docs/cpu.md     its longest sentences

Code, tables, headings and pictures are no prose. A sentence ends at a full stop, a question mark,
a colon before a list, and at the end of a paragraph or of a list's item.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean

REPOSITORY = Path(__file__).resolve().parents[1]
MOST_WORDS = 18  # of the mean sentence of a page
_NO_PROSE = (
    (re.compile(r"<!--.*?-->", re.DOTALL), " "),
    (re.compile(r"^(```|~~~).*?^\1$", re.MULTILINE | re.DOTALL), "\n\n"),
    (re.compile(r"^(?:    |\t).*$", re.MULTILINE), "\n"),
    (re.compile(r"^(?:\||#|:::|<).*$", re.MULTILINE), "\n\n"),
    (re.compile(r"\[?!\[[^\]]*\]\([^)]*\)(?:\]\([^)]*\))?"), " "),
    (re.compile(r"\[([^\]]*)\]\([^)]*\)"), r"\1"),
    (re.compile(r"`[^`]*`"), " code "),
)
_ITEM = re.compile(r"^ *(?:[-*]|\d+\.) +", re.MULTILINE)
_END = re.compile(r"(?<=[.?!])[\"')*_]*\s+(?=[\"'(*_]*[A-Z0-9\[]|code\b)|(?<=:)\s*\n\n")
_WORD = re.compile(r"[A-Za-z0-9][\w.,'/%×-]*")


def pages() -> Iterator[Path]:
    """The pages that people read."""
    for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "docker/README.md"):
        yield REPOSITORY / name
    for folder in ("docs", "examples"):
        yield from sorted((REPOSITORY / folder).rglob("*.md"))


def sentences(text: str) -> list[str]:
    """The sentences of a page."""
    for pattern, instead in _NO_PROSE:
        text = pattern.sub(instead, text)
    text = _ITEM.sub("\n\n", text)
    paragraphs = (" ".join(one.split()) for one in re.split(r"\n\s*\n", text))
    found = (sentence for one in paragraphs for sentence in _END.split(one))
    return [sentence for sentence in found if words(sentence)]


def words(sentence: str) -> int:
    """How many words a sentence has."""
    return len(_WORD.findall(sentence))


def mean_words(text: str) -> float:
    """The words of a page's mean sentence; 0 where it has none."""
    return fmean(words(one) for one in found) if (found := sentences(text)) else 0.0


def main(argv: list[str]) -> int:
    """Print the lengths."""
    for name in argv:
        longest = sorted(sentences(Path(name).read_text("utf-8")), key=words, reverse=True)[:12]
        print("\n".join(f"{words(one):4} {one}" for one in longest))
    if argv:
        return 0
    for page in pages():
        text = page.read_text("utf-8")
        lengths = [words(one) for one in sentences(text)] or [0]
        print(
            f"{mean_words(text):5.1f} mean {max(lengths):4} longest {sum(lengths):6} words  "
            f"{page.relative_to(REPOSITORY)}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
