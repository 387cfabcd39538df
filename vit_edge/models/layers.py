"""The two layers that every transformer here is made of."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from vit_edge.bundle.architecture import Activation, Architecture


class Linear(nn.Module):
    """y = x W + b with W stored [in, out], so that an exported MatMul needs no Transpose."""

    def __init__(self, inputs: int, outputs: int, bias: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(inputs, outputs))
        self.bias = nn.Parameter(torch.empty(outputs)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        y = torch.matmul(x, self.weight)
        return y if self.bias is None else y + self.bias


class MLP(nn.Module):
    """Two layers with an exact GELU between them, or with one of its approximations."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.fc1 = Linear(architecture.width, architecture.mlp_dim)
        self.fc2 = Linear(architecture.mlp_dim, architecture.width)
        self.activation = architecture.activation

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.fc2(activate(self.fc1(x), self.activation))
        return y


def activate(x: Tensor, activation: Activation) -> Tensor:
    """Apply GELU: exact, or approximated in one of the two ways of arXiv:1606.08415, section 2."""
    if activation == "quick_gelu":
        return x * torch.sigmoid(1.702 * x)
    return functional.gelu(x, approximate="tanh" if activation == "gelu_tanh" else "none")
