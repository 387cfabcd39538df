"""The table of probes, in the order of the report."""

from __future__ import annotations

from vit_edge.doctor.findings import Probe

_HERE = "vit_edge.doctor"

PROBES = (
    Probe("machine", "system", f"{_HERE}.system:operating_system"),
    Probe("machine", "CPU", f"{_HERE}.system:cpu"),
    Probe("machine", "CPU features", f"{_HERE}.system:features"),
    Probe("machine", "memory", f"{_HERE}.system:free_memory"),
    Probe("machine", "disk", f"{_HERE}.system:disk"),
    Probe("machine", "clocks", f"{_HERE}.jetson:clocks"),
    Probe("machine", "board", f"{_HERE}.jetson:board"),
    Probe("machine", "JetPack", f"{_HERE}.jetson:jetpack"),
    Probe("machine", "power mode", f"{_HERE}.jetson:power_mode"),
    Probe("nvidia", "driver", f"{_HERE}.nvidia:driver"),
    Probe("nvidia", "GPU", f"{_HERE}.nvidia:gpus", isolated=True),
    Probe("nvidia", "libraries", f"{_HERE}.nvidia:cuda_libraries"),
    Probe("nvidia", "TensorRT (apt)", f"{_HERE}.nvidia:tensorrt_packages"),
    Probe("python", "Python", f"{_HERE}.system:python"),
    Probe("python", "vit_edge", f"{_HERE}.system:ourselves"),
    Probe("python", "foundation", f"{_HERE}.system:foundation", isolated=True),
    Probe("python", "ONNX Runtime", f"{_HERE}.runtimes:onnx_runtime", isolated=True),
    Probe("python", "OpenVINO", f"{_HERE}.runtimes:openvino", isolated=True),
    Probe("python", "TensorRT", f"{_HERE}.runtimes:tensorrt", isolated=True),
    Probe("python", "TensorRT-RTX", f"{_HERE}.runtimes:tensorrt_rtx", isolated=True),
    Probe("python", "export extra", f"{_HERE}.runtimes:export_extra"),
)
