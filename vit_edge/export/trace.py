"""The model as it is exported: equal to models.vit up to rounding, and a cleaner graph.

Four things differ from the reference, none of them visible in the answers:

- the class token and its position are one constant row, put in front by a Pad, so that no Shape
  or Expand is needed for the dynamic batch;
- where only the class token is asked for, the last block works for that token alone: nobody reads
  the others (about 8 % of a 12-block model's multiply-adds). Not where features are pooled over
  several tokens, nor where keys are normalised and cannot be folded away;
- attention is one ONNX `Attention` node (opset 23), or MatMul-Softmax-MatMul with the scale folded
  into the query weights, for runtimes whose opset ends earlier;
- a zero-shot head has the lengths of its texts and their scale in its matrix.
"""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from vit_edge.export.merging import ExportMerging, size_bias
from vit_edge.export.soft_split import ExportTokensToToken
from vit_edge.models.layers import Linear
from vit_edge.models.merging import Tokens
from vit_edge.models.t2t import TokensToToken
from vit_edge.models.vit import (
    Block,
    CosineHead,
    Embedding,
    Readout,
    SelfAttention,
    ViT,
    merge_heads,
    split_heads,
    unit,
)

if TYPE_CHECKING:
    import onnx_ir

INPUT_NAME = "pixel_values"
OF_ALL_TOKENS = {"tokens", "reconstruction"}  # the outputs that need more than the class token
TRACED_BATCH = 2  # never 0 or 1, which torch.export would burn into the graph

AttentionForm = Literal["fused", "decomposed"]


class Attention(Protocol):
    """softmax(q k^T / sqrt(head_dim)) v, in a form that a runtime is good at."""

    def split(self, qkv: Tensor, heads: int) -> tuple[Tensor, ...]:
        """float32[N, tokens, 3 * D] -> q, k and v, laid out as `attend` wants them."""
        ...

    def normalise(self, x: Tensor, norm: nn.LayerNorm, heads: int) -> Tensor:
        """Apply a LayerNorm to the channels of each head of q or k."""
        ...

    def attend(self, q: Tensor, k: Tensor, v: Tensor, heads: int, bias: Tensor | None) -> Tensor:
        """-> float32[N, query tokens, D]; the bias, [N, 1, 1, tokens], is of the scores."""
        ...

    def mean_key(self, k: Tensor, heads: int) -> Tensor:
        """-> float32[N, tokens, head_dim], the mean over the heads."""
        ...


class FusedAttention:
    """One ONNX Attention node on rank-3 tensors; its default scale is 1 / sqrt(head_dim)."""

    def split(self, qkv: Tensor, heads: int) -> tuple[Tensor, ...]:
        return qkv.chunk(3, dim=-1)

    def normalise(self, x: Tensor, norm: nn.LayerNorm, heads: int) -> Tensor:
        y: Tensor = norm(x.reshape(*x.shape[:2], heads, -1))
        return y.flatten(-2)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, heads: int, bias: Tensor | None) -> Tensor:
        if bias is not None:  # one row for all queries is not among what runtimes take
            bias = bias.expand(-1, 1, q.shape[1], -1)
        y: Tensor = torch.onnx.ops.attention(q, k, v, bias, q_num_heads=heads, kv_num_heads=heads)[
            0
        ]
        return y

    def mean_key(self, k: Tensor, heads: int) -> Tensor:
        return k.reshape(*k.shape[:2], heads, -1).mean(dim=2)


class DecomposedAttention:
    """MatMul, Softmax, MatMul; the weights behind q carry the scale (see `scaled_query`)."""

    def split(self, qkv: Tensor, heads: int) -> tuple[Tensor, ...]:
        return split_heads(qkv, 3 * heads).chunk(3, dim=1)

    def normalise(self, x: Tensor, norm: nn.LayerNorm, heads: int) -> Tensor:
        y: Tensor = norm(x)
        return y

    def attend(self, q: Tensor, k: Tensor, v: Tensor, heads: int, bias: Tensor | None) -> Tensor:
        scores = q @ k.transpose(-2, -1)
        scores = scores if bias is None else scores + bias
        return merge_heads(scores.softmax(dim=-1) @ v)

    def mean_key(self, k: Tensor, heads: int) -> Tensor:
        return k.mean(dim=1)


_FORMS: dict[AttentionForm, Attention] = {
    "fused": FusedAttention(),
    "decomposed": DecomposedAttention(),
}


def constant(tensor: Tensor) -> nn.Parameter:
    """A weight of the exported form, contiguous and in memory of its own."""
    return nn.Parameter(tensor.clone(memory_format=torch.contiguous_format), requires_grad=False)


def columns(linear: Linear, start: int, stop: int) -> Linear:
    """The outputs start:stop of a Linear as one of its own, in fresh memory."""
    with torch.device("meta"):
        part = Linear(linear.weight.shape[0], stop - start, bias=linear.bias is not None)
    part.weight = constant(linear.weight[:, start:stop])
    if linear.bias is not None:
        part.bias = constant(linear.bias[start:stop])
    return part


def scaled_query(qkv: Linear, heads: int) -> Linear:
    """Fold 1 / sqrt(head_dim) into the query columns: exact where head_dim is a power of 4."""
    width = qkv.weight.shape[0]
    scaled = columns(qkv, 0, 3 * width)
    scale = (width // heads) ** -0.5
    scaled.weight[:, :width] *= scale
    if scaled.bias is not None:
        scaled.bias[:width] *= scale
    return scaled


def scaled_norm(norm: nn.LayerNorm, scale: float) -> nn.LayerNorm:
    """A LayerNorm whose answers are `scale` times those of `norm`, in fresh memory."""
    with torch.device("meta"):
        scaled = nn.LayerNorm(norm.normalized_shape, eps=norm.eps)
    scaled.weight, scaled.bias = constant(norm.weight * scale), constant(norm.bias * scale)
    return scaled


class ExportEmbedding(nn.Module):
    """Pad instead of Concat(Expand): the prefix's rows of `position` hold its tokens, too."""

    def __init__(self, embedding: Embedding, form: AttentionForm) -> None:
        super().__init__()
        self.patch = embedding.patch
        if isinstance(self.patch, TokensToToken):
            self.patch = ExportTokensToToken(self.patch, fused=form == "fused")
        self.position = constant(embedding.position)
        self.prefix = 0
        if embedding.cls_token is not None:
            self.prefix = embedding.cls_token.shape[1]
            self.position[:, : self.prefix] += embedding.cls_token
        self.norm = embedding.norm

    def forward(self, pixels: Tensor) -> Tensor:
        patches: Tensor = self.patch(pixels)
        if patches.ndim == 4:  # of a convolution
            patches = patches.flatten(2).transpose(1, 2)
        if self.prefix:
            patches = functional.pad(patches, (0, 0, self.prefix, 0))
        x = patches + self.position
        return x if self.norm is None else cast(Tensor, self.norm(x))


class ExportAttention(nn.Module):
    """Self-attention over fused q, k, v, in the form that the runtime is best at."""

    def __init__(self, attention: SelfAttention, form: AttentionForm) -> None:
        super().__init__()
        self.heads = attention.heads
        decomposed = form == "decomposed"
        self.qkv, self.out = attention.qkv, attention.out
        self.q_norm, self.k_norm = attention.q_norm, attention.k_norm
        if decomposed and self.q_norm is not None:  # which would take a scale in front of it back
            self.q_norm = scaled_norm(self.q_norm, attention.head_dim**-0.5)
        elif decomposed:
            self.qkv = scaled_query(attention.qkv, self.heads)
        self.form = _FORMS[form]

    def forward(self, x: Tensor, sizes: Tensor | None) -> tuple[Tensor, Tensor]:
        q, k, v = self.form.split(self.qkv(x), self.heads)
        if self.q_norm is not None and self.k_norm is not None:
            q = self.form.normalise(q, self.q_norm, self.heads)
            k = self.form.normalise(k, self.k_norm, self.heads)
        bias = None if sizes is None else size_bias(sizes)[:, None]
        return self.out(self.form.attend(q, k, v, self.heads, bias)), k

    def mean_key(self, k: Tensor) -> Tensor:
        """-> float32[N, tokens, head_dim], the mean over the heads."""
        return self.form.mean_key(k, self.heads)


class ClsAttention(nn.Module):
    """Self-attention whose only query is the class token: no key or value is ever computed.

    With one query per head, (y W_k) q = y (W_k q) and p (y W_v) = (p y) W_v: the tokens y meet one
    vector per head instead of two matrices. The key's bias shifts all scores of a query alike,
    which softmax does not see; the value's bias, under weights that sum to 1, moves into the
    output's.
    """

    def __init__(self, attention: SelfAttention) -> None:
        super().__init__()
        width, heads = attention.qkv.weight.shape[0], attention.heads
        head_dim = width // heads
        self.q = columns(attention.qkv, 0, width)
        key, value = attention.qkv.weight[:, width:].reshape(width, 2, heads, head_dim).unbind(1)
        self.key = constant(key.permute(1, 2, 0) * head_dim**-0.5)  # [heads, head_dim, D]
        self.value = constant(value.permute(1, 0, 2))  # [heads, D, head_dim]
        self.out = columns(attention.out, 0, width)
        if attention.qkv.bias is not None and self.out.bias is not None:
            value_bias = attention.qkv.bias[2 * width :]
            self.out.bias = constant(self.out.bias + value_bias @ self.out.weight)

    def forward(self, y: Tensor, sizes: Tensor | None) -> Tensor:
        heads, head_dim, width = self.key.shape
        q = self.q(y[:, :1]).reshape(-1, heads, 1, head_dim)
        scores = (q @ self.key).reshape(-1, heads, width) @ y.transpose(1, 2)
        scores = scores if sizes is None else scores + size_bias(sizes)
        mixed = (scores.softmax(dim=-1) @ y).reshape(-1, heads, 1, width)
        return self.out((mixed @ self.value).reshape(-1, 1, width))  # type: ignore[no-any-return]


class ExportBlock(nn.Module):
    """Eq. 2 and 3, for all tokens; and the merging between them."""

    def __init__(self, block: Block, form: AttentionForm) -> None:
        super().__init__()
        self.norm1, self.norm2, self.mlp = block.norm1, block.norm2, block.mlp
        self.attention = ExportAttention(block.attention, form)
        self.merging = ExportMerging(block.merged, block.prefix) if block.merged else None

    def forward(self, tokens: Tokens) -> Tokens:
        answer, k = self.attention(self.norm1(tokens.x), tokens.sizes)
        tokens = tokens._replace(x=tokens.x + answer)
        if self.merging is not None:
            tokens = self.merging(tokens, self.attention.mean_key(k))
        return tokens._replace(x=tokens.x + self.mlp(self.norm2(tokens.x)))


class ClsBlock(nn.Module):
    """Eq. 2 and 3, from all tokens to the class token alone: [N, tokens, D] -> [N, 1, D]."""

    def __init__(self, block: Block) -> None:
        super().__init__()
        self.norm1, self.norm2, self.mlp = block.norm1, block.norm2, block.mlp
        self.attention = ClsAttention(block.attention)

    def forward(self, tokens: Tokens) -> Tokens:
        x, sizes = tokens
        cls = x[:, :1] + self.attention(self.norm1(x), sizes)
        return Tokens(cls + self.mlp(self.norm2(cls)))


class UnitHead(nn.Module):
    """A CosineHead whose columns have the length of its scale, folded in float64."""

    def __init__(self, head: CosineHead) -> None:
        super().__init__()
        self.weight = constant((head.scale * unit(head.weight.double(), 0)).float())

    def forward(self, x: Tensor) -> Tensor:
        return torch.matmul(unit(x, -1), self.weight)


def exportable_readout(readout: Readout) -> Readout:
    """The same modules, but for a zero-shot head; the reference stays as it is."""
    if not isinstance(readout.head, CosineHead):
        return readout
    exportable = copy.copy(readout)
    exportable._modules = {**readout._modules, "head": UnitHead(readout.head)}
    return exportable


class ExportableViT(nn.Module):
    """float32[N, channels, H, W] -> the outputs asked for, in that order."""

    def __init__(self, model: ViT, outputs: Sequence[str], form: AttentionForm) -> None:
        super().__init__()
        *blocks, last = (cast(Block, block) for block in model.blocks)
        self.embedding = ExportEmbedding(model.embedding, form)
        self.blocks = nn.ModuleList([ExportBlock(block, form) for block in blocks])
        alone = model.architecture.class_token_alone and not {*outputs} & OF_ALL_TOKENS
        self.blocks.append(ClsBlock(last) if alone else ExportBlock(last, form))
        self.readout = exportable_readout(model.readout)
        self.outputs = tuple(outputs)

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        tokens = Tokens(self.embedding(pixels))
        for block in self.blocks:
            tokens = block(tokens)
        answers = self.readout(tokens)._asdict()
        return tuple(answers[name] for name in self.outputs)


def model_from_vit(
    vit: ViT, outputs: Sequence[str], *, opset: int, attention: AttentionForm
) -> onnx_ir.Model:
    """Trace the model into an ONNX graph with one dynamic axis, the batch.

    Args:
        vit: The reference; its parameters become the initializers without being copied.
        outputs: Names of models.vit.Outputs, in the order wanted.
        opset: ONNX operator set; "fused" needs 23 or newer.
        attention: The form of the attention, see the module's docstring.

    Returns:
        The model as torch.onnx makes it; `passes` clean it up.
    """
    architecture = vit.architecture
    exportable = ExportableViT(vit, outputs, attention).eval()
    pixels = torch.zeros(TRACED_BATCH, architecture.channels, *architecture.image_hw)
    with warnings.catch_warnings():
        # torch.export's own deprecations, and "torchvision is not installed"; nothing of ours
        warnings.simplefilter("ignore")
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        program = torch.onnx.export(
            exportable,
            (pixels,),
            dynamo=True,
            opset_version=opset,
            dynamic_shapes={"pixels": {0: torch.export.Dim("batch")}},
            input_names=[INPUT_NAME],
            output_names=list(outputs),
            verbose=False,
        )
    if program is None:  # only when it was asked to write a file itself
        raise AssertionError("torch.onnx.export returned nothing")
    model: onnx_ir.Model = program.model
    return model


def release_weights(model: onnx_ir.Model) -> None:
    """Give the memory of the traced weights back; neither they nor the model are usable afterwards.

    Dropping the model is not enough: torch.export keeps the parameters alive in its caches.
    """
    for value in model.graph.initializers.values():
        tensor = getattr(value.const_value, "raw", None)
        if isinstance(tensor, Tensor):
            tensor.data = tensor.new_empty(0)
