"""Ask backends for the reference's answers."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from vit_edge import backends, cli
from vit_edge.bundle import Bundle
from vit_edge.errors import UsageError
from vit_edge.parity import run
from vit_edge.parity.result import Result
from vit_edge.parity.targets import Target, target_from


def parity(
    bundle: str | os.PathLike[str] | Bundle,
    *,
    backend: str | Sequence[str] = backends.AUTO,
    against_url: str | None = None,
    golden: str | os.PathLike[str] | None = None,
    against: str | os.PathLike[str] | Bundle | None = None,
    target: str | Target | None = None,
    localize: bool = False,
    memory_limit: str | int | None = None,
    timeout_s: float | None = None,
) -> Result:
    """Compare what backends make of a bundle with the reference, each in a child process.

    Args:
        bundle: The candidate: its directory, or a Bundle that was read.
        backend: One name, or several; "ort,openvino" is two.
        against_url: A running server of KServe's protocol, such as Triton or MLServer: it is
            compared, and no backend here. http://HOST:PORT, or with /v2/models/NAME behind it.
        golden: Images with the reference's answers; by default the bundle's own.
        against: Another bundle, whose answers to those images are the reference instead.
        target: What the logits must reach besides the precision's limit, such as
            "top1_agreement=0.99".
        localize: Look for the step where what fails leaves the fp32 bundle that `against` names.
        memory_limit: Of each child: bytes, or a size such as "400MB".
        timeout_s: Of each child.

    Returns:
        The result, with one run a backend. A candidate that fails or dies is in it, not raised.

    Raises:
        UsageError: No such backend, or a target that means nothing.
        BundleError: A bundle or the golden file cannot be used.
        BackendError: The server does not answer, or serves another model.
    """
    if against_url is not None:
        given = {"backend": backend != backends.AUTO, "localize": localize,
                 "memory-limit": memory_limit is not None}  # fmt: skip
        if wrong := [option for option, is_given in given.items() if is_given]:
            raise UsageError(
                f"--{wrong[0]} is for what runs here, and --against-url asks a server: give one"
            )
    return run.compare(
        bundle,
        backend_names=backend_names(backend),
        against_url=against_url,
        golden=None if golden is None else Path(golden),
        against=against,
        target=target_from(target),
        localize=localize,
        memory_limit_bytes=cli.limit_bytes(memory_limit),
        timeout_s=timeout_s,
    )


def backend_names(asked: str | Sequence[str]) -> list[str]:
    """List the backends asked for.

    Raises:
        UsageError: One that there is not, or one twice.
    """
    known = backends.names()
    names = [name.strip() for name in (asked.split(",") if isinstance(asked, str) else asked)]
    problems = [f"no backend {name!r}; there are: {', '.join(known)}" for name in names
                if name not in known]  # fmt: skip
    problems += [f"{name} is given twice" for name in dict.fromkeys(names) if names.count(name) > 1]
    if problems or not names:
        raise UsageError("; ".join(problems) or "name at least one backend")
    return names
