"""Read parity results from files that may come from anywhere."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from vit_edge.errors import InputError, UsageError
from vit_edge.parity.report import schema
from vit_edge.parity.run import SCHEMA_VERSION

# A result of 10,000 images on four backends, the most that is recorded, takes about 12 MB.
LARGEST_BYTES = 256 << 20
_PROBLEMS_SHOWN = 20
_REMEDY = "write it again: python -m vit_edge.parity BUNDLE --save FILE"
_BUNDLES = " (2 is the parity.json inside a bundle, about its export)"


def read_results(paths: Sequence[Path]) -> list[dict[str, Any]]:
    """Read several results.

    Raises:
        InputError: Files that hold no result, all of them named.
        UsageError: Two files hold the same result.
    """
    found, problems = [], []
    for path in paths:
        try:
            found.append(read_result(path))
        except InputError as error:
            problems.append(str(error))
    if problems:
        raise InputError("\n".join(problems))
    for index, result in enumerate(found):
        if result in found[:index]:
            raise UsageError(
                f"{paths[found.index(result)]} and {paths[index]} hold the same result; name it "
                "once"
            )
    return found


def read_result(path: str | Path) -> dict[str, Any]:
    """Read what `python -m vit_edge.parity BUNDLE --save FILE` wrote.

    Args:
        path: The file; it may come from anywhere, nothing in it is trusted.

    Returns:
        A result whose every part has the type that docs/parity.md says.

    Raises:
        InputError: No such file, no JSON, another schema version, or keys that are missing or of
            another type: all of them are listed.
    """
    path = Path(path)
    try:
        if not path.is_file():  # a pipe or a device would block
            raise InputError(f"{path}: {'no file' if path.exists() else 'no such file'}")
        if path.stat().st_size > LARGEST_BYTES:
            raise InputError(f"{path}: larger than {LARGEST_BYTES >> 20} MiB: no parity result")
        value = json.loads(path.read_bytes(), parse_constant=_no_number)
        json.dumps(value, ensure_ascii=False).encode()  # half of a pair of surrogates: no text
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: damaged, or no JSON: {error}; {_REMEDY}") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    version = value.get("schema_version") if isinstance(value, dict) else None
    if isinstance(value, dict) and version != SCHEMA_VERSION:
        raise InputError(
            f"{path}: a parity result of schema version {version!r:.40}, this vit_edge reads "
            f"{SCHEMA_VERSION}{_BUNDLES if version == 2 else ''}; {_REMEDY}"
        )
    problems = schema.problems(value)
    if problems:
        more = len(problems) - _PROBLEMS_SHOWN
        shown = problems[:_PROBLEMS_SHOWN] + ([f"and {more} more"] if more > 0 else [])
        raise InputError(f"{path}: no parity result: {'; '.join(shown)}; {_REMEDY}")
    result: dict[str, Any] = value
    return result


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")
