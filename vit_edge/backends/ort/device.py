"""A session on a GPU: what must be there first, the session, its tensors, and what really runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from vit_edge.backends.ort import libraries, providers
from vit_edge.backends.ort.binding import Binding
from vit_edge.backends.ort.options import PROVIDERS, LoadOptions
from vit_edge.backends.ort.session import check_present, open_session, session_options
from vit_edge.bundle import Bundle
from vit_edge.errors import BackendError

if TYPE_CHECKING:
    import onnxruntime

_MEMORY = "cuda"  # of OrtValue: where the provider has its tensors


class Bound(NamedTuple):
    """A session that runs on a GPU, its tensors, and what it says of itself."""

    session: onnxruntime.InferenceSession
    binding: Binding
    facts: Mapping[str, str]


def open_bound(runtime: Any, bundle: Bundle, use: LoadOptions) -> Bound:
    """Open a bundle on a GPU, every node of it, and its tensors there.

    Args:
        runtime: The onnxruntime module.
        bundle: The bundle, verified.
        use: How it runs.

    Raises:
        BackendError: No GPU, a library is missing, or a node would run elsewhere.
    """
    check_present(runtime, use.provider)
    gpu = providers.gpu_of(use)
    providers.check_installed()
    precision = bundle.manifest.precision
    options = session_options(runtime, use, precision, optimize=True)
    with providers.stdout_on_stderr():
        libraries.preload(runtime)
        try:
            session = open_session(
                runtime, bundle.model_path, options, use.provider, providers.provider_options(use)
            )
        except BackendError as error:
            raise providers.explain(error, libraries.missing(runtime), runtime) from error
    facts = {
        "device": f"{gpu.name} ({gpu.sm})",
        "provider": PROVIDERS[use.provider],
        "cuda_graph": "on" if use.cuda_graph else "off",
        **providers.precision_facts(precision),
    }
    binding = Binding(
        runtime, session, bundle.manifest,
        memory=_MEMORY, device=use.device, cuda_graph=use.cuda_graph,
    )  # fmt: skip
    return Bound(session, binding, facts)
