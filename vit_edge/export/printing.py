"""What the command lines that make bundles print of one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from vit_edge import cli
from vit_edge.bundle import Bundle
from vit_edge.parity.targets import STATISTICS


def print_bundle(bundle: Bundle, *, as_json: bool) -> None:
    """Print where it is, what it is and what the gate found."""
    parity = bundle.parity()
    size = sum(record.size for record in bundle.manifest.files.values())
    if as_json:
        result = {
            "bundle": str(bundle.path),
            "variant": bundle.manifest.variant,
            "checkpoint": bundle.manifest.checkpoint.source,
            "size_bytes": size,
            "model_sha256": bundle.model_sha256,
            "precision": bundle.manifest.precision,
            "quantization": bundle.manifest.quantization,
            "parity": parity,
        }
        print(json.dumps(result, indent=2))
        return
    quantization = bundle.manifest.quantization
    if quantization is not None and quantization["table"]:
        print(cli.table(quantization["table"]) + "\n")
    print(f"bundle   {bundle.path} ({size / 1e6:.1f} MB)")
    print(f"model    {bundle.manifest.variant} from {bundle.manifest.checkpoint.source}")
    if "merging" in parity:
        print(f"merging  {merging_verdict(parity['merging'])}")
    print(f"parity   {verdict(parity)}")


def merging_verdict(merging: Mapping[str, Any]) -> str:
    """Sum up what merging tokens changed, in a line."""
    rows = merging.get("against_unmerged", {}).get("comparisons", [])
    row = rows[0] if rows else next(iter(merging["by_merging_alone"].values()))
    what = "against the model without" if rows else "by merging alone, before it was lowered"
    found = [
        f"{statistic.words} {statistic.written(row[name])}"
        for name, statistic in STATISTICS.items()
        if name in ("top1_agreement", "sqnr_centred_db") and row.get(name) is not None
    ]
    return (
        f"{sum(merging['merged_tokens'])} of {merging['tokens'][0]} tokens go, "
        f"{merging['saved_part_of_blocks']:.0%} of the blocks' work; {what}: {', '.join(found)}"
    )


def verdict(parity: Mapping[str, Any]) -> str:
    """Sum up the gate's result, in a few lines."""
    rows = parity["comparisons"]
    if rows[0]["allowed_relative"] is not None:
        worst = max(rows, key=lambda row: float(row["relative"]))
        return (
            f"holds; {worst['output']} differ most, by {worst['relative']:.1e} of the "
            f"reference's largest, allowed {worst['allowed_relative']:.0e}"
        )
    logits = [row for row in rows if row["output"] == "logits"] or rows
    row = max(logits, key=lambda row: int(row["images"]))
    lines = [f"holds on {row['images']} images"]
    for name, statistic in STATISTICS.items():
        if row.get(name) is None:
            continue
        text = f"{statistic.words:<30} {statistic.written(row[name])}"
        interval = row.get(statistic.interval or "")
        if interval:
            text += f" (95 %: {' to '.join(statistic.written(end) for end in interval)})"
        lines.append(text)
    if parity.get("simulated"):
        lines.append(f"simulated: {parity['simulated']}")
    return "\n         ".join(lines)
