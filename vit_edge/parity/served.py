"""A server that takes image files must make of them what the golden file's probes say."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from vit_edge.bundle.golden import Probe
from vit_edge.bundle.manifest import Manifest
from vit_edge.errors import BackendError
from vit_edge.images.preprocess import input_from_resized
from vit_edge.kserve.endpoint import Endpoint
from vit_edge.parity.invariance import Answers, allowed_between_runs, largest_relative
from vit_edge.parity.limits import Limit
from vit_edge.parity.result import Check

PREPROCESSING = "preprocessing"  # as of a backend here, whose preprocessing is looked at itself


def check_files(
    endpoint: Endpoint, probes: Sequence[Probe], manifest: Manifest, limit: Limit
) -> Check:
    """Compare a server's answer to each probe with its answer to the pixels that belong to it.

    JPEG decoders may differ by some levels. What such noise does to this model's answers is asked
    of the server, too.

    Args:
        endpoint: It takes files.
        probes: Of the golden file.
        manifest: How the input follows from pixels.
        limit: What the precision allows between two runs.
    """
    problems = [] if probes else ["there are no probes: the preprocessing was not checked"]
    for probe in probes:
        allowed = allowed_between_runs(limit)
        expected = _answer(endpoint, probe.resized, manifest)
        if probe.levels_allowed:
            noisy = _answer(endpoint, _with_noise(probe), manifest)
            allowed = max(allowed, largest_relative(expected, noisy))
        try:
            found = endpoint.run_files([probe.data])
        except BackendError as error:
            problems.append(f"probe {probe.name}: {error}")
            continue
        if (worst := largest_relative(expected, found)) > allowed:
            problems.append(
                f"probe {probe.name}: the answer differs by {worst:.2g} of its largest value from "
                f"that to the pixels it should become, allowed {allowed:.2g}"
            )
    return Check(
        PREPROCESSING, not problems, "; ".join(problems) or f"{len(probes)} probe files, sent whole"
    )


def _answer(endpoint: Endpoint, resized: NDArray[np.uint8], manifest: Manifest) -> Answers:
    return endpoint.run(input_from_resized(resized[None], manifest))


def _with_noise(probe: Probe) -> NDArray[np.uint8]:
    levels = probe.levels_allowed
    noise = np.random.default_rng(0).integers(-levels, levels + 1, probe.resized.shape)
    noisy: NDArray[np.uint8] = (probe.resized + noise).clip(0, 255).astype(np.uint8)
    return noisy
