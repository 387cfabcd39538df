"""A session on a GPU: what must be there first, the session, and what really runs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from vit_edge.backends.ort import libraries, providers
from vit_edge.backends.ort.binding import Binding
from vit_edge.backends.ort.session import check_present, open_session, session_options
from vit_edge.backends.ort.use import PROVIDERS, Use
from vit_edge.bundle import Bundle
from vit_edge.errors import BackendError

if TYPE_CHECKING:
    import onnxruntime

_MEMORY = "cuda"  # of OrtValue: where both providers have their tensors


class Opened(NamedTuple):
    """A session that runs on a GPU."""

    session: onnxruntime.InferenceSession
    facts: Mapping[str, str]


class Bound(NamedTuple):
    """The same with its tensors."""

    session: onnxruntime.InferenceSession
    binding: Binding
    facts: Mapping[str, str]


def opened(
    runtime: Any, bundle: Bundle, use: Use, cache: Path | None = None, profile: str | None = None
) -> Opened:
    """Open a bundle on a GPU, every node of it.

    Args:
        runtime: The onnxruntime module.
        bundle: The bundle, verified.
        use: How it runs.
        cache: TensorRT provider: where its engine is read from or written to.
        profile: What the files start with that say where each node ran; None: they are not kept.

    Raises:
        BackendError: No GPU, a library is missing, or a node would run elsewhere.
    """
    check_present(runtime, use.provider)
    gpu = providers.gpu_of(use)
    providers.check_installed()
    options = session_options(runtime, use, bundle.manifest.precision, optimize=True, entries={})
    if profile is not None:
        options.enable_profiling, options.profile_file_prefix = True, profile
    told = providers.provider_options(use, bundle.manifest, cache)
    facts = {"device": f"{gpu.name} ({gpu.sm})", "provider": PROVIDERS[use.provider]}
    with providers.stdout_on_stderr():
        libraries.preload(runtime)
        if use.provider == "tensorrt":
            facts["tensorrt"] = libraries.tensorrt_version(runtime)
        try:
            session = open_session(runtime, bundle.model_path, options, use.provider, told)
        except BackendError as error:
            reasons = libraries.missing(runtime, use.provider)
            raise providers.explained(error, reasons, runtime) from error
    if use.provider == "cuda":
        facts["cuda_graph"] = "on" if use.gpu.cuda_graph else "off"
    return Opened(session, facts | providers.precision_facts(use, bundle.manifest.precision))


def bound(runtime: Any, bundle: Bundle, use: Use, engine: Path | None) -> Bound:
    """Open a bundle on a GPU, and its tensors there.

    Raises:
        BackendError: As `opened`.
        EngineError: TensorRT provider: the engine is not what was recorded, or was not taken.
    """
    if engine is None:
        session, facts = opened(runtime, bundle, use)
    else:
        from vit_edge.backends.ort import tensorrt

        with tensorrt.lent(engine) as cache:
            session, facts = opened(runtime, bundle, use, cache)
    binding = Binding(
        runtime, session, bundle.manifest,
        memory=_MEMORY, device=use.gpu.device, cuda_graph=use.gpu.cuda_graph,
    )  # fmt: skip
    return Bound(session, binding, facts)
