"""Another exporter's graph: run as it came, rewritten into one form, and run again."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import onnx_ir
import onnxruntime
from numpy.typing import NDArray

from vit_edge.errors import ModelError
from vit_edge.export.foreign.interface import Interface
from vit_edge.graphs.exactness import EXACT_RELATIVE, relative_difference
from vit_edge.graphs.mapped import load_mapped
from vit_edge.graphs.normalise import normalise
from vit_edge.graphs.versions import MINIMUM_IR
from vit_edge.graphs.workspace import Workspace
from vit_edge.machine import cpus
from vit_edge.machine.paths import path_for

_LOG = logging.getLogger(__name__)

LOGITS = "logits"
_PROBABILITIES = {"Softmax", "LogSoftmax", "Sigmoid"}


def load_normalised(path: Path, interface: Interface, scratch: Path) -> tuple[onnx_ir.Model, int]:
    """Normalise a checked file, and prove that it computes what it did, whatever the batch.

    Returns:
        The model, its only output named "logits", and the number of classes.

    Raises:
        ModelError: It runs at one batch size only, mixes the images of a batch, or changed.
    """
    expected = _logits_of_file(path, interface)
    model = load_mapped(path)
    _keep_logits(model, interface, expected.shape[1], str(path))
    normalise(model)
    # the oldest that will do: runtimes refuse newer ones, and nothing here needs them
    model.ir_version = MINIMUM_IR.get(model.opset_imports[""], model.ir_version)
    workspace = Workspace(scratch / "foreign")
    model = workspace.settle(model)
    (actual,) = workspace.observe(model, model.graph.outputs, [_noise(interface)])
    relative = relative_difference(actual[LOGITS], expected)
    if not relative <= EXACT_RELATIVE:
        raise ModelError(
            f"{path}: rewritten, its logits differ by {relative:.1e} of the largest, allowed "
            f"{EXACT_RELATIVE:.0e}; this is a fault of vit_edge: please report it with the file"
        )
    return model, expected.shape[1]


def _logits_of_file(path: Path, interface: Interface) -> NDArray[np.float32]:
    """Run noise at batch 3, 2 and 1: float32[3, classes].

    Raises:
        ModelError: A batch fails, or its size changes an answer.
    """
    session = open_session(path)
    noise = _noise(interface)
    answers: list[NDArray[np.float32]] = []
    for size in (3, 2, 1):
        try:
            (logits,) = session.run([interface.output], {interface.input: noise[:size]})
        except Exception as error:  # the runtime's exceptions have no common base but this
            raise ModelError(
                f"{path}: does not run with {size} image(s) at once, so the batch it was exported "
                f"with is baked in: {_first_line(error)}. Export it again with an example batch "
                "of 2 and a dynamic batch axis"
            ) from error
        if logits.ndim != 2 or len(logits) != size or not np.isfinite(logits).all():
            raise ModelError(
                f"{path}: {interface.output} is {list(logits.shape)} for {size} image(s), or not "
                f"finite; [{size}, classes] is needed"
            )
        answers.append(logits)
    together = answers[0]
    if any(relative_difference(a, together[: len(a)]) > EXACT_RELATIVE for a in answers):
        raise ModelError(
            f"{path}: the answer to an image depends on how many others are in its batch; export "
            "the model in evaluation mode (model.eval()), without quantizing it dynamically"
        )
    return together


def _keep_logits(model: onnx_ir.Model, interface: Interface, classes: int, where: str) -> None:
    """Drop the other outputs, and give the logits their name."""
    outputs = model.graph.outputs
    (logits,) = (value for value in outputs if value.name == interface.output)
    producer = logits.producer()
    if producer is not None and producer.op_type in _PROBABILITIES and not producer.domain:
        raise ModelError(
            f"{where}: {interface.output} comes out of a {producer.op_type}, so these are no "
            "logits; export the model without it, vit_edge applies the softmax itself"
        )
    dropped = [str(value.name) for value in outputs if value is not logits]
    if dropped:
        _LOG.info("%s: keeping %s, dropping %s", where, interface.output, ", ".join(dropped))
    outputs[:] = [logits]
    if logits.name != LOGITS:
        _LOG.info("%s: its output %s is called %s from here on", where, logits.name, LOGITS)
    for node in model.graph:
        for value in node.outputs:
            if value.name == LOGITS and value is not logits:
                value.name = f"{LOGITS}_inner"
    logits.name = LOGITS
    logits.shape = onnx_ir.Shape(["batch", classes])


def open_session(path: Path) -> onnxruntime.InferenceSession:
    """Open a checked file in ONNX Runtime's CPU provider.

    Raises:
        ModelError: ONNX Runtime refuses it.
        BackendError: It cannot take the path.
    """
    location = path_for("onnxruntime", path)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = cpus.usable_cpus()
    options.log_severity_level = 4
    try:
        return onnxruntime.InferenceSession(location, options, ["CPUExecutionProvider"])
    except Exception as error:  # the runtime's exceptions have no common base but this
        raise ModelError(f"{path}: onnxruntime refuses it: {_first_line(error)}") from error


def _noise(interface: Interface) -> NDArray[np.float32]:
    shape = (3, 3, *interface.image_hw)
    return np.random.default_rng(0).standard_normal(shape, np.float32)


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]
