"""A fixture for the tests of your own repository: they fail when an exported model drifts.

    def test_my_model(vit_edge_parity):
        vit_edge_parity("bundles/mine-int8", backend="ort", target="top1_agreement=0.99")

pytest finds it through the entry point `vit_edge`; `-p no:vit_edge` leaves it out. Nothing but
pytest is imported before a test asks for it.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import pytest

if TYPE_CHECKING:
    from vit_edge.parity.result import Result


class Check(Protocol):
    """What the fixture gives: call it with a bundle."""

    def __call__(
        self,
        bundle: str | os.PathLike[str],
        *,
        backend: str = "auto",
        target: str | None = None,
        golden: str | os.PathLike[str] | None = None,
        against: str | os.PathLike[str] | None = None,
        memory_limit: str | None = None,
        strict: bool = False,
    ) -> dict[str, Any]:
        """Compare a bundle with the reference, in a process of its own.

        Args:
            bundle: The bundle's directory.
            backend: As `--backend` of vit-edge parity; several with commas.
            target: As `--target`, such as "top1_agreement=0.99".
            golden: Another golden file than the bundle's own.
            against: A bundle whose answers are the reference instead.
            memory_limit: Of each backend's process, such as "400MB".
            strict: Fail also where the images are too few to decide.

        Returns:
            The result, as `--json` prints it.

        Raises:
            AssertionError: The bundle does not compute the reference's answers; it says what.
            VitEdgeError: It cannot be compared at all, such as a damaged bundle.
        """
        ...


@pytest.fixture(scope="session")
def vit_edge_parity() -> Check:
    """Compare a bundle with the reference's answers; see `Check`."""
    return check_parity


def check_parity(
    bundle: str | os.PathLike[str],
    *,
    backend: str = "auto",
    target: str | None = None,
    golden: str | os.PathLike[str] | None = None,
    against: str | os.PathLike[str] | None = None,
    memory_limit: str | None = None,
    strict: bool = False,
) -> dict[str, Any]:
    """See `Check`."""
    __tracebackhide__ = True  # a red test shows the caller's line and our words
    from vit_edge.cli import size_bytes
    from vit_edge.parity import run
    from vit_edge.parity.result import exit_code
    from vit_edge.parity.targets import parse_target
    from vit_edge.strict import json_from_record

    result = run.compare(
        os.fspath(bundle),
        backend_names=backend.split(","),
        golden=None if golden is None else Path(golden),
        against=None if against is None else Path(against),
        target=None if target is None else parse_target(target),
        memory_limit_bytes=None if memory_limit is None else size_bytes(memory_limit),
    )
    if exit_code([result], strict=strict):
        raise AssertionError(failure_text(result))
    written: dict[str, Any] = json_from_record(result)
    return written


def failure_text(result: Result) -> str:
    """What a red test says: the bundle, and of each backend the verdict and why."""
    from vit_edge import cli

    bundle = result.bundle
    lines = [f"{bundle.name} ({bundle.variant}, {bundle.precision}) drifts:"]
    for run in result.runs:
        lines.append(f"  {run.name}: {run.verdict}")
        lines += [f"    {reason}" for reason in (*run.failures, *run.open_questions)]
    return cli.printable("\n".join(lines))
