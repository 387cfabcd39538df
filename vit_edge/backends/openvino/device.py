"""A device of OpenVINO: whether it can do what is asked, and models compiled for it."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from vit_edge.backends.openvino.options import CAPABILITY, Options, properties
from vit_edge.backends.openvino.rewrite import round_products, split_tokens
from vit_edge.backends.openvino.runtime import imported, refusals, version
from vit_edge.bundle import Bundle
from vit_edge.errors import BackendError
from vit_edge.machine import cpus
from vit_edge.machine.paths import path_for

if TYPE_CHECKING:
    import openvino


def check_device(core: openvino.Core, bundle: Bundle, options: Options) -> None:
    """Refuse a device that is not there, or lacks a precision: it would take another unasked.

    Raises:
        BackendError: With what there is instead.
    """
    device = options.device
    if device != "CPU":  # which is always there; looking for the others takes 20 ms
        there = core.available_devices
        if not any(device in (name, name.partition(".")[0]) for name in there):
            raise BackendError(
                f"OpenVINO {version()} has no device {device!r} here, only {', '.join(there)}; "
                "GPUs and NPUs need their drivers, see OpenVINO's system requirements"
            )
    with refusals(f"asking {device} for its precisions"):
        capabilities = core.get_property(device, "OPTIMIZATION_CAPABILITIES")
        name = device_name(core, options)
    listed = f"OpenVINO lists {', '.join(sorted(capabilities))}"
    if CAPABILITY[options.execution_precision] not in capabilities:
        fitting = [precision for precision, needed in CAPABILITY.items() if needed in capabilities]
        raise BackendError(
            f"{name} does not compute in {options.execution_precision}: {listed}; "
            f"execution_precision may be {' or '.join(fitting)} here"
        )
    if bundle.manifest.precision == "bf16" and CAPABILITY["bf16"] not in capabilities:
        raise BackendError(
            f"{bundle.path}: {name} has no BF16 ({listed}), and would multiply in float32. Export "
            "another precision for this device; its parity was proven at export (see parity.json)"
        )


def device_name(core: openvino.Core, options: Options) -> str:
    """Return the device's own name."""
    if options.family == "CPU":
        return cpus.cpu_model()
    return str(core.get_property(options.device, "FULL_DEVICE_NAME"))


def compile_model(core: openvino.Core, bundle: Bundle, options: Options) -> openvino.CompiledModel:
    """Compile a bundle's model, for any batch size where the device can.

    Raises:
        UsageError: It does not have that many tokens to split.
        BackendError: OpenVINO refuses it.
    """
    with refusals(f"{bundle.path}: OpenVINO {version()} refuses it"):
        model = core.read_model(path_for("OpenVINO", bundle.model_path))
        if options.static:
            model.reshape([1, *bundle.manifest.input.shape[1:]])
        if options.execution_precision == "bf16-products":
            round_products(model)
        if options.split_tokens is not None:
            split_tokens(model, options.split_tokens)
        return core.compile_model(model, options.device, properties(bundle, options))


def import_blob(
    core: openvino.Core, bundle: Bundle, options: Options, blob: NDArray[np.uint8]
) -> openvino.CompiledModel:
    """Open what CompiledModel.export_model wrote.

    Args:
        core: Of the same version.
        bundle: What it was compiled from.
        options: What it was compiled with; streams and threads may differ.
        blob: The file, mapped. The model reads weights from it, and does not keep it alive.

    Raises:
        BackendError: OpenVINO refuses it.
    """
    with refusals(f"{bundle.path}: OpenVINO {version()} refuses its engine; build it again"):
        tensor = imported().Tensor(blob, shared_memory=True)
        return core.import_model(tensor, options.device, properties(bundle, options))


def granted(model: openvino.CompiledModel, options: Options) -> dict[str, str]:
    """Read back what OpenVINO really does: instead of raising it takes what it can.

    Returns:
        execution_precision, streams, threads; of a CPU also the products and their types.

    Raises:
        BackendError: Something that was asked for is otherwise; all of it is listed.
    """
    with refusals("reading the compiled model's properties"):
        properties = {
            "execution_precision": model.get_property("INFERENCE_PRECISION_HINT").to_string(),
            "streams": str(model.get_property("NUM_STREAMS")),
            "threads": f"of {options.device}",
        }
        if options.family == "CPU":
            properties["threads"] = str(model.get_property("INFERENCE_NUM_THREADS"))
        devices = model.get_property("EXECUTION_DEVICES")
    asked = {
        "execution_precision": options.precision_hint,
        "streams": options.streams,
        "threads": options.threads,
    }
    problems = [
        f"{name} {value}, got {properties[name]}"
        for name, value in asked.items()
        if value is not None and str(value) != properties[name]
    ]
    if any(name.partition(".")[0] != options.family for name in devices):
        problems.append(f"device {options.device}, got {', '.join(devices)}")
    if problems:
        raise BackendError(
            f"asked OpenVINO {version()} for {'; for '.join(problems)}: ask for what this machine "
            "has, or leave it out"
        )
    properties["execution_precision"] = options.execution_precision
    if options.family == "CPU":
        products = product_precisions(model).most_common()
        properties["products"] = ", ".join(f"{count} {name}" for name, count in products)
    return properties


def product_precisions(model: openvino.CompiledModel) -> Counter[str]:
    """Count the matrix products of a compiled model by the type they run in.

    Args:
        model: Of the CPU plugin; others name their layers differently.
    """
    layers = [operation.get_rt_info() for operation in model.get_runtime_model().get_ops()]
    return Counter(
        layer["runtimePrecision"].astype(str)
        for layer in layers
        if layer["layerType"].astype(str) in ("FullyConnected", "MatMul")
    )
