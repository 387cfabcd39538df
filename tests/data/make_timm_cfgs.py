"""Write timm_cfgs.json: what timm's pretrained_cfg says of every timm name in our table.

Run where timm is installed:  python tests/data/make_timm_cfgs.py
"""

import json
from pathlib import Path

import timm
from timm.models import get_pretrained_cfg

from vit_edge.variants import VARIANTS

KEYS = ("num_classes", "input_size", "crop_pct", "crop_mode", "interpolation", "mean", "std")


def main() -> None:
    cfgs = {}
    for row in VARIANTS.values():
        if row.timm is None:
            continue
        cfg = get_pretrained_cfg(row.timm, allow_unregistered=False)
        if cfg is None:
            raise SystemExit(f"timm {timm.__version__} has no {row.timm}")
        cfgs[row.timm] = {key: getattr(cfg, key) for key in KEYS}
        # .npz files of the original authors are what these weights were converted from.
        cfgs[row.timm]["url"] = cfg.url if str(cfg.url).endswith(".npz") else None
    text = json.dumps({"timm": timm.__version__, "cfgs": cfgs}, indent=1, sort_keys=True)
    Path(__file__).with_name("timm_cfgs.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
