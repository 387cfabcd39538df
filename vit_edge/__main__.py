"""python -m vit_edge BUNDLE IMAGE... predicts; python -m vit_edge VERB ... is vit-edge VERB ..."""

from __future__ import annotations

import sys
from pathlib import Path

from vit_edge import cli
from vit_edge.predict.__main__ import main as main
from vit_edge.predict.__main__ import parser as parser

if __name__ == "__main__":
    verb = sys.argv[1] in cli.VERBS if sys.argv[1:] else False
    sys.exit(cli.main() if verb and not Path(sys.argv[1], "manifest.json").exists() else main())
