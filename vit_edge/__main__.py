"""python -m vit_edge BUNDLE IMAGE... predicts; python -m vit_edge VERB ... is vit-edge VERB ..."""

from __future__ import annotations

import sys
from pathlib import Path

from vit_edge import cli
from vit_edge.predict.__main__ import main as main
from vit_edge.predict.__main__ import parser as parser

if __name__ == "__main__":
    first = " ".join(sys.argv[1:2])
    bundle = Path(first, "manifest.json").exists()  # and not what happens to be called like a verb
    sys.exit(cli.main() if first in cli.VERBS and not bundle else main())
