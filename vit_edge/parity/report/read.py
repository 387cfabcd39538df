"""Read parity results from files that may come from anywhere."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vit_edge.errors import InputError, UsageError
from vit_edge.parity.judge import with_findings
from vit_edge.parity.result import SCHEMA_VERSION, Result
from vit_edge.strict import json_from_file, record_from_json

# A result of 10,000 images on four backends, the most that is recorded, takes about 12 MB.
LARGEST_BYTES = 256 << 20
_PROBLEMS_SHOWN = 20
_REMEDY = "write it again: vit-edge parity BUNDLE --out FILE"
_BUNDLES = " (2 is the parity.json inside a bundle, about its export)"


def read_results(paths: Sequence[Path]) -> list[Result]:
    """Read several results.

    Raises:
        InputError: Files that hold no result, all of them named.
        UsageError: Two files hold the same result.
    """
    results, problems = [], []
    for path in paths:
        try:
            results.append(read_result(path))
        except InputError as error:
            problems.append(str(error))
    if problems:
        raise InputError("\n".join(problems))
    for index, result in enumerate(results):
        if result in results[:index]:
            first = paths[results.index(result)]
            raise UsageError(f"{first} and {paths[index]} hold the same result; name it once")
    return results


def read_result(path: str | Path) -> Result:
    """Read what `vit-edge parity BUNDLE --out FILE` wrote.

    Args:
        path: The file; it may come from anywhere, nothing in it is trusted.

    Raises:
        InputError: No such file, no JSON, another schema version, or keys that are missing or of
            another type: all of them are listed.
    """
    path = Path(path)
    value = json_from_file(path, largest_bytes=LARGEST_BYTES, kind="parity result", remedy=_REMEDY)
    version = value.get("schema_version") if isinstance(value, dict) else None
    if isinstance(value, dict) and version != SCHEMA_VERSION:
        raise InputError(
            f"{path}: a parity result of schema version {version!r:.40}, this vit_edge reads "
            f"{SCHEMA_VERSION}{_BUNDLES if version == 2 else ''}; {_REMEDY}"
        )
    result, problems = result_from_json(value)
    if problems:
        more = len(problems) - _PROBLEMS_SHOWN
        shown = problems[:_PROBLEMS_SHOWN] + ([f"and {more} more"] if more > 0 else [])
        raise InputError(f"{path}: no parity result: {'; '.join(shown)}; {_REMEDY}")
    return result


def result_from_json(value: Any) -> tuple[Result, list[str]]:
    """Make a result of a JSON value, with what is wrong with it; see `record_from_json`."""
    result, problems = record_from_json(Result, value)
    if problems:
        return result, problems
    try:
        runs = tuple(with_findings(run) for run in result.runs)
    except ArithmeticError:
        return result, ["runs hold rates or bounds that no comparison has"]
    return dataclasses.replace(result, runs=runs), []
