"""Operator sets and the IR versions that go with them."""

from __future__ import annotations

OLDEST_EXPORTED_OPSET = 18  # that torch.onnx's dynamo exporter writes
NEWEST_OPSET = 23  # the newest proven here
FUSED_OPSET = 23  # brought the Attention operator
# onnx's own versions table: the IR each opset was released with; older runtimes refuse newer ones
MINIMUM_IR = {18: 8, 19: 9, 20: 9, 21: 10, 22: 10, 23: 10}
