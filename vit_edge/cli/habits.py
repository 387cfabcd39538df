"""What people type who know other tools, as a table: ultralytics, trtexec, optimum-cli and timm."""

from __future__ import annotations

import re
from collections.abc import Callable, Container
from typing import NamedTuple

TRUE, FALSE = {"true", "1", "yes", "on", ""}, {"false", "0", "no", "off", "none"}
OWN_IMAGES = "DIR"  # stands in a command for a folder that only the user knows
# Precisions that cannot be chosen without images; a test compares them with the quantizers.
CALIBRATED = ("fp16", "fp8", "int4", "int8", "int8-weights")
_PRECISIONS = {
    "half": "fp16", "float16": "fp16", "f16": "fp16", "16": "fp16", "bfloat16": "bf16",
    "float32": "fp32", "f32": "fp32", "32": "fp32", "8": "int8", "i8": "int8", "true": "int8",
    "q8": "int8", "uint8": "int8", "fp4": "int4", "4": "int4", "float8": "fp8",
    "quantize": "int8", "quantized": "int8", "quantization": "int8",
}  # fmt: skip
_BACKENDS = {
    "engine": "trt", "tensorrt": "trt", "trt": "trt", "cuda": "trt", "gpu": "trt",
    "openvino": "openvino", "ov": "openvino", "cpu": "ort", "onnxruntime": "ort", "ort": "ort",
}  # fmt: skip


VALUE_HABITS = {"--precision": _PRECISIONS, "--backend": _BACKENDS, "-b": _BACKENDS}


class Habit(NamedTuple):
    """An option of another tool's.

    Attributes:
        names: Its spellings, without dashes and underscores, in lower case.
        words: What is typed here, {} for its value; nothing where nothing need be typed.
        verbs: Those that have it, the first of them where another one was typed; none: it is the
            same for all.
        reads: Turns the value into ours; None where it is none of ours.
        why: What is said where nothing need be typed.
        flag: It takes no value, or true and false.
    """

    names: tuple[str, ...]
    words: tuple[str, ...] = ()
    verbs: tuple[str, ...] = ()
    reads: Callable[[str], str | None] | None = None
    why: str = ""
    flag: bool = False


def size_of(text: str) -> str | None:
    """Read 384, 384,384 or 3 384 384 as 384; [320, 448] as 320x448."""
    numbers = re.findall(r"\d+", text)[-2:]
    return "x".join(dict.fromkeys(numbers)) or None


def batch_of(text: str) -> str | None:
    """Read 8, or the first number of a shape: pixel_values:8x3x224x224."""
    first = re.match(r"\[?(\d+)", text.rpartition(":")[2])
    return first[1] if first else None


def precision_of(text: str) -> str | None:
    """Read a precision as other tools spell it."""
    plain = plain_name(text)
    return _PRECISIONS.get(plain, plain) or None


def backend_of(text: str) -> str | None:
    """Read a device or a runtime; a number is a GPU's."""
    plain = plain_name(text)
    return "trt" if re.fullmatch(r"(cuda:?)?\d+(,\d+)*", plain) else _BACKENDS.get(plain)


def plain_name(text: str) -> str:
    """A name without what tools write differently: dashes, underscores, capitals."""
    return text.lstrip("-").replace("-", "").replace("_", "").lower()


def _flag_of(precision: str, *names: str) -> Habit:
    more = ("--calibration", OWN_IMAGES) if precision in CALIBRATED else ()
    return Habit(names, ("--precision", precision, *more), ("export",), flag=True)


_LOADERS = ("build", "predict", "evaluate", "bench", "parity", "recommend")
HABITS = (
    _flag_of("fp16", "half", "fp16", "float16"),
    _flag_of("bf16", "bf16", "bfloat16"),
    _flag_of("fp32", "fp32", "float32", "float"),
    _flag_of("fp8", "fp8"),
    _flag_of("int4", "int4"),
    _flag_of("int8", "int8", "quantize", "quantized", "quantization", "quant", "ptq"),
    Habit(
        ("dtype", "weightformat", "torchdtype", "optimize4bit", "quantmode"),
        ("--precision", "{}"),
        ("export",),
        precision_of,
    ),
    Habit(
        ("data", "dataset", "calib", "calibdata", "calibrationdata", "calibrationdataset"),
        ("--calibration", "{}"),
        ("export",),
    ),
    Habit(
        ("imgsz", "imgsize", "img", "imagesize", "inputsize", "size", "resolution", "height"),
        ("--image-size", "{}"),
        ("export",),
        size_of,
    ),
    Habit(
        ("batchsize", "bs", "nb"), ("--batch", "{}"),
        ("bench", "predict", "evaluate", "recommend", "build"), batch_of,
    ),
    Habit(
        ("batch", "batchsize", "bs", "maxbatchsize", "minshapes", "optshapes", "maxshapes",
         "shapes"),
        ("--max-batch", "{}"),
        ("export",),
        batch_of,
    ),
    Habit(
        ("dynamic", "dynamicbatch", "dynamicaxes", "dynamicshapes", "explicitbatch"),
        why="the batch is always dynamic, up to --max-batch",
        flag=True,
    ),
    Habit(
        ("simplify", "optimize", "optimise", "o1", "o2", "o3", "o4", "fold", "slim"),
        why="the graph is always simplified",
        flag=True,
    ),
    Habit(
        ("task", "libraryname", "library", "framework", "mode"),
        why="a Vision Transformer's is known",
    ),
    Habit(("pretrained", "trustremotecode"), why="the source decides", flag=True),
    Habit(("opsetversion", "onnxopset"), ("--opset", "{}"), ("export",)),
    Habit(
        ("saveengine", "engine", "loadengine"), ("--backend", "trt"), ("build", *_LOADERS[1:])
    ),
    Habit(("format",), ("--backend", "{}"), ("build", *_LOADERS[1:]), backend_of),
    Habit(
        ("device", "provider", "executionprovider", "runtime", "gpu", "useengine"),
        ("--backend", "{}"),
        _LOADERS,
        backend_of,
    ),
    Habit(("workspace", "mempoolsize"), ("--set", "workspace_mb={}"), ("build",), batch_of),
    Habit(
        ("model", "weights", "modelnameorpath", "pretrainedmodel", "ckpt", "resume",
         "checkpointpath", "modelname", "modelpath"),
        ("--model", "{}"),
        ("export",),
    ),
    Habit(("source", "input", "inputs", "image", "file"), ("{}",), ("predict",)),
    Habit(
        ("output", "outputdir", "outdir", "savedir", "dest", "project", "exportoutput", "saveto",
         "outputfile", "exporttimes", "exportprofile"),
        ("--out", "{}"),
        ("export", "build", "parity", "parity record", "bench", "recommend", "predict"),
    ),
    Habit(
        ("overwrite", "existok", "replace", "yes"), ("--force",), ("export", "parity record"),
        flag=True,
    ),
    Habit(("features", "embedding", "embeddings"), ("--embed",), ("predict",), flag=True),
    Habit(("duration", "time"), ("--seconds", "{}"), ("bench",)),
    Habit(("numclasses", "nc"), why="the source says how many classes there are"),
)  # fmt: skip
# Words that stand alone where a source, a bundle or an image may: `vit-edge export MODEL half`.
ALONE = {
    "half", "fp16", "bf16", "int8", "fp8", "int4", "quantize", "quantized", "dynamic", "simplify",
}  # fmt: skip
# `optimum-cli export onnx --model ...`: a format between the verb and the model
FORMATS = {"onnx", "openvino", "engine", "tensorrt"}
# verbs of other tools, and of ours that stand behind another
VERB_HABITS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(
        ("quantize", "int8", "ptq", "optimize"),
        ("export", "--precision", "int8", "--calibration", OWN_IMAGES),
    ),
    "quantise": ("quantize",),
    **dict.fromkeys(("half", "fp16"), ("export", "--precision", "fp16")),
    **dict.fromkeys(("convert", "onnx", "torch2onnx", "toonnx", "main"), ("export",)),
    **dict.fromkeys(("trtexec", "engine", "compile", "tensorrt"), ("build", "--backend", "trt")),
    **dict.fromkeys(("tune", "autotune"), ("build", "--tune")),
    **dict.fromkeys(("val", "validate", "test", "eval", "accuracy", "score"), ("evaluate",)),
    **dict.fromkeys(("infer", "inference", "classify", "run", "detect", "label"), ("predict",)),
    **dict.fromkeys(("embed", "features", "encode"), ("predict", "--embed")),
    **dict.fromkeys(("benchmark", "profile", "perf", "speed", "latency"), ("bench",)),
    **dict.fromkeys(("info", "show", "describe", "summary"), ("inspect",)),
    **dict.fromkeys(("check", "checks", "env", "settings", "diagnose"), ("doctor",)),
    **dict.fromkeys(("list", "models", "variants", "zoo"), ("export", "--list-variants")),
    "record": ("parity", "record"),
    "merge": ("parity", "merge"),
    "compare": ("bench", "compare"),
    "report": ("bench", "report"),
    "version": ("--version",),
    "help": ("--help",),
}


def habit_of(name: str, verb: str, options: Container[str]) -> Habit | None:
    """The habit that a plain name is; first one whose words the verb takes."""
    fitting = [habit for habit in HABITS if name in habit.names]
    own = [habit for habit in fitting if is_taken(habit, verb, options)]
    return next(iter(own or fitting), None)


def is_taken(habit: Habit, verb: str, options: Container[str]) -> bool:
    """Tell whether a verb takes what a habit tells to type."""
    return not habit.verbs or verb in habit.verbs or habit.words[0] in options
