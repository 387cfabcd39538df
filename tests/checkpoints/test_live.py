"""Modules in memory become checkpoints: equal, or refused by name. They stay as they are."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from vit_edge.checkpoints import Checkpoint, Request, load_checkpoint
from vit_edge.checkpoints.live import LiveModule, load_live
from vit_edge.errors import CheckpointError, UsageError
from vit_edge.models.reference import reference_outputs
from vit_edge.models.vit import vit_from_weights

requires = ("torch", "safetensors", "transformers")

SIZES = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
    "image_size": 32, "patch_size": 16,
}  # fmt: skip
PROCESSOR = {"image_processor_type": "ViTImageProcessor", "size": {"height": 32, "width": 32}}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Models of 16 channels: threads would only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def drawn(module: nn.Module) -> nn.Module:
    """A module whose weights are all different, so that each counts in the answer."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return module


def vit(**config: Any) -> Any:
    """A small ViTForImageClassification."""
    from transformers import ViTConfig, ViTForImageClassification

    names = {"id2label": {0: "cat", 1: "dog", 2: "owl"}}
    return drawn(ViTForImageClassification(ViTConfig(**{**SIZES, **names, **config})))


@pytest.fixture
def processor(tmp_path: Path) -> Path:
    """The file of a processor that fits the modules here."""
    path = tmp_path / "preprocessor_config.json"
    path.write_text(json.dumps(PROCESSOR))
    return path


def outputs_of(checkpoint: Checkpoint, pixels: Tensor) -> Any:
    model = vit_from_weights(checkpoint.architecture, dict(checkpoint.weights))
    return reference_outputs(model, pixels.numpy(), "float32")


def refused(module: nn.Module, request: Request | None = None, **live: Any) -> str:
    with pytest.raises((CheckpointError, UsageError)) as caught:
        load_live(LiveModule(module, **live), request or Request())
    return str(caught.value)


def test_a_module_is_read_as_its_saved_files_are(tmp_path: Path, processor: Path) -> None:
    module = vit()
    module.save_pretrained(tmp_path)
    saved = load_checkpoint(str(tmp_path), Request())
    live = load_live(LiveModule(module, processor), Request())
    assert live.architecture == saved.architecture
    assert live.preprocessing == saved.preprocessing
    assert live.labels == saved.labels == ("cat", "dog", "owl")
    assert all(torch.equal(live.weights[name], saved.weights[name]) for name in saved.weights)
    assert live.record.source == "live:transformers.ViTForImageClassification"
    assert len(live.record.sha256["state_dict"]) == 64


def test_what_is_recorded_of_the_weights_changes_with_them(processor: Path) -> None:
    module = vit()
    before = load_live(LiveModule(module, processor), Request()).record.sha256
    assert load_live(LiveModule(module, processor), Request()).record.sha256 == before
    with torch.no_grad():
        module.classifier.bias[0] += 1e-3
    after = load_live(LiveModule(module, processor), Request()).record.sha256
    assert after["state_dict"] != before["state_dict"]
    assert after["config.json"] == before["config.json"]


def families() -> dict[str, Callable[[], Any]]:
    """One module a kind of transformers that is read; all take images of 32 or 28 px."""
    import transformers as hf

    half = {**SIZES, "projection_dim": 8}
    dino = {name: size for name, size in SIZES.items() if name != "intermediate_size"}
    text = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    return {
        "vit": lambda: hf.ViTForImageClassification(hf.ViTConfig(**SIZES, num_labels=3)),
        "vit without a head": lambda: hf.ViTModel(hf.ViTConfig(**SIZES)),
        "vit for masked images": lambda: hf.ViTForMaskedImageModeling(hf.ViTConfig(**SIZES)),
        "deit": lambda: hf.DeiTForImageClassification(hf.DeiTConfig(**SIZES, num_labels=3)),
        "deit with two heads": lambda: hf.DeiTForImageClassificationWithTeacher(
            hf.DeiTConfig(**SIZES, num_labels=3)
        ),
        "dinov2": lambda: hf.Dinov2ForImageClassification(
            hf.Dinov2Config(**{**dino, "patch_size": 14, "image_size": 56}, num_labels=3)
        ),
        "clip": lambda: hf.CLIPModel(
            hf.CLIPConfig(vision_config=half, text_config=text, projection_dim=8)
        ),
        "clip's vision half": lambda: hf.CLIPVisionModelWithProjection(hf.CLIPVisionConfig(**half)),
    }


@pytest.mark.parametrize("name", families())
def test_every_family_of_transformers_is_read_and_asked(name: str, processor: Path) -> None:
    module = drawn(families()[name]())
    if name == "dinov2":
        processor.write_text(json.dumps({**PROCESSOR, "size": {"height": 28, "width": 28}}))
    checkpoint = load_live(LiveModule(module, processor), Request())
    pixels = torch.randn(2, 3, *checkpoint.architecture.image_hw)
    ours = outputs_of(checkpoint, pixels)
    with torch.no_grad():
        if "clip" in name:
            half = getattr(module, "vision_model", module)
            pooled = half(pixels).pooler_output
            theirs, found = module.visual_projection(pooled), ours.features
        elif "vit without" in name or "masked" in name:
            theirs, found = module.base_model.eval()(pixels).last_hidden_state, ours.tokens
        else:
            theirs, found = module.eval()(pixels).logits, ours.logits
    np.testing.assert_allclose(found.numpy(), theirs.numpy(), atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_module_stays_as_it_is(dtype: torch.dtype, processor: Path) -> None:
    module = vit(hidden_dropout_prob=0.5).to(dtype).train()
    module.vit.layers[0].eval()  # a frozen part, as fine-tuning has it
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    modes = [part.training for part in module.modules()]
    checkpoint = load_live(LiveModule(module, processor), Request())
    assert [part.training for part in module.modules()] == modes
    assert all(parameter.requires_grad for parameter in module.parameters())
    after = module.state_dict()
    assert all(after[name].dtype == dtype for name in after)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(tensor.dtype == torch.float32 for tensor in checkpoint.weights.values())
    bias = checkpoint.weights["readout.head.bias"]
    assert torch.equal(bias, module.classifier.bias.detach().float())
    assert bias.data_ptr() != module.classifier.bias.data_ptr()


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")
@pytest.mark.parametrize(
    "wrap",
    [nn.DataParallel, torch.compile, torch.optim.swa_utils.AveragedModel],
    ids=["DataParallel", "compile", "AveragedModel"],
)
def test_a_wrapper_that_changes_nothing_is_taken_off(
    wrap: Callable[[nn.Module], nn.Module], processor: Path
) -> None:
    module = vit()
    wrapped = load_live(LiveModule(wrap(module), processor), Request())
    bare = load_live(LiveModule(module, processor), Request())
    assert wrapped.record == bare.record
    assert wrapped.architecture == bare.architecture


@pytest.mark.parametrize("name", ["DistributedDataParallel", "FullyShardedDataParallel"])
def test_wrappers_of_several_processes_are_told_by_their_names(name: str, processor: Path) -> None:
    wrapper = type(name, (nn.Module,), {})()
    wrapper.module = vit()
    if name == "DistributedDataParallel":
        assert load_live(LiveModule(wrapper, processor), Request()).labels == ("cat", "dog", "owl")
    else:
        assert "spread over processes" in refused(wrapper)


def test_a_subclass_of_somebodys_own_is_read_as_what_it_is_of(processor: Path) -> None:
    module = vit()
    module.__class__ = type("FineTuned", (type(module),), {})
    checkpoint = load_live(LiveModule(module, processor), Request())
    assert checkpoint.record.source == "live:transformers.ViTForImageClassification"


class Doubled(nn.Module):
    """An activation that is none of ours."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * nn.functional.gelu(x)


def with_hook(module: Any) -> None:
    module.vit.layers[0].register_forward_hook(lambda part, given, answer: answer * 1.5)


def with_activation(module: Any) -> None:
    mlp = module.vit.layers[1].mlp
    (name,) = [name for name, part in mlp.named_children() if "act" in name.lower()]
    setattr(mlp, name, Doubled())


def with_forward(module: Any) -> None:
    own = module.forward

    def forward(pixels: Tensor) -> Any:
        answer = own(pixels)
        answer.logits = answer.logits.softmax(-1)
        return answer

    module.forward = forward


@pytest.mark.parametrize("change", [with_hook, with_activation, with_forward])
def test_a_module_that_computes_something_else_is_refused(
    change: Callable[[Any], None], processor: Path
) -> None:
    module = vit()
    change(module)
    message = refused(module, processor=processor)
    assert "does not compute what its class and configuration say" in message
    assert "torch.onnx.export" in message


def test_the_epsilon_in_memory_decides(processor: Path) -> None:
    module = vit()
    for part in module.modules():
        if isinstance(part, nn.LayerNorm):
            part.eps = 1e-3
    assert load_live(LiveModule(module, processor), Request()).architecture.layer_norm_eps == 1e-3
    module.vit.layernorm.eps = 1e-5
    assert "more than one epsilon: 1e-05 in vit.layernorm, 0.001 in" in refused(
        module, processor=processor
    )


def test_what_has_no_weights_here_is_refused() -> None:
    assert "cls_token is on the meta device" in refused(vit().to("meta"))


def test_quantized_weights_are_refused() -> None:
    module = vit()
    module.config.quantization_config = {"quant_method": "bitsandbytes"}
    assert "it is quantized" in refused(module)
    module = vit()
    weight = module.classifier.weight
    del module.classifier.weight
    module.classifier.register_buffer("weight", weight.detach().to(torch.int8))
    assert "classifier.weight is torch.int8; weights must be floats" in refused(module)


def test_an_adapter_that_is_not_merged_is_refused() -> None:
    module = vit()
    module.classifier.lora_A = nn.ModuleDict({"default": nn.Linear(16, 2, bias=False)})
    assert "adapter of PEFT that is not merged" in refused(module)
    peft = type("PeftModel", (nn.Module,), {})()
    peft.base_model = module
    assert "model.merge_and_unload()" in refused(peft)


def test_a_parametrized_weight_is_refused() -> None:
    module = vit()
    nn.utils.parametrizations.spectral_norm(module.classifier)
    assert "remove_parametrizations" in refused(module)


@pytest.mark.parametrize("module", [nn.Linear(3, 3), nn.Sequential(nn.Conv2d(3, 3, 1))])
def test_a_module_of_no_library_that_is_known_is_refused(module: nn.Module) -> None:
    assert "no module of transformers, timm, torchvision" in refused(module)


def test_a_head_of_somebodys_own_is_refused_by_its_names() -> None:
    module = vit()
    module.classifier = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3))
    assert "classifier" in refused(module)


def test_another_model_of_transformers_is_refused_by_its_type() -> None:
    from transformers import ResNetConfig, ResNetForImageClassification

    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1])
    message = refused(ResNetForImageClassification(config))
    assert "ResNetForImageClassification.config: model_type: 'resnet' is another model" in message
    assert "/tmp" not in message


def test_a_processor_for_another_size_is_refused_or_asked_for(processor: Path) -> None:
    processor.write_text(json.dumps({**PROCESSOR, "size": {"height": 48, "width": 48}}))
    message = refused(vit(), processor=processor)
    assert message.startswith("processor: size: images end at [48, 48] px")
    asked = Request(image_hw=(48, 48))
    checkpoint = load_live(LiveModule(vit(), processor), asked)
    assert checkpoint.architecture.image_hw == (48, 48)
    assert checkpoint.record.position_interpolation is not None


def test_without_a_processor_the_defaults_are_taken_and_said(
    caplog: pytest.LogCaptureFixture,
) -> None:
    checkpoint = load_live(LiveModule(vit()), Request())
    assert checkpoint.preprocessing.crop_hw == (32, 32)
    assert "nothing says how images become pixels" in caplog.text


def test_a_revision_and_a_key_are_refused() -> None:
    assert "a module is none" in refused(vit(), Request(revision="v1"))
    assert "a module is none" in refused(vit(), Request(key="teacher"))


def of_timm(**changes: Any) -> nn.Module:
    """What stands in for timm's VisionTransformer where timm is not installed: names and answers.

    Built from timm's description (vision_transformer.py); tests with timm itself are below.
    """

    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.num_heads = 2
            self.qkv, self.proj = nn.Linear(16, 48), nn.Linear(16, 16)

        def forward(self, x: Tensor) -> Tensor:
            batch, tokens, width = x.shape
            q, k, v = self.qkv(x).reshape(batch, tokens, 3, 2, 8).permute(2, 0, 3, 1, 4)
            mixed = nn.functional.scaled_dot_product_attention(q, k, v)
            return self.proj(mixed.transpose(1, 2).reshape(batch, tokens, width))

    class Mlp(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc1, self.fc2 = nn.Linear(16, 32), nn.Linear(32, 16)
            self.act = changes.get("act", nn.GELU())

        def forward(self, x: Tensor) -> Tensor:
            return self.fc2(self.act(self.fc1(x)))

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm1, self.norm2 = nn.LayerNorm(16, 1e-6), nn.LayerNorm(16, 1e-6)
            self.attn, self.mlp = Attention(), Mlp()

        def forward(self, x: Tensor) -> Tensor:
            x = x + self.attn(self.norm1(x))
            return x + self.mlp(self.norm2(x))

    class VisionTransformer(nn.Module):
        __module__ = "timm.models.vision_transformer"

        def __init__(self) -> None:
            super().__init__()
            self.num_classes, self.global_pool = 5, changes.get("global_pool", "token")
            self.patch_embed = nn.Module()
            self.patch_embed.img_size = (32, 48)
            self.patch_embed.proj = nn.Conv2d(3, 16, 16, 16)
            self.cls_token = nn.Parameter(torch.zeros(1, 1, 16))
            self.pos_embed = nn.Parameter(torch.zeros(1, 7, 16))
            self.blocks = nn.Sequential(Block(), Block())
            self.norm, self.fc_norm = nn.LayerNorm(16, 1e-6), nn.Identity()
            self.head = nn.Linear(16, 5)
            self.pretrained_cfg = changes.get("pretrained_cfg", CFG)

        def forward(self, x: Tensor) -> Tensor:
            x = self.patch_embed.proj(x).flatten(2).transpose(1, 2)
            x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1) + self.pos_embed
            x = self.norm(self.blocks(x))
            pooled = x[:, 1:].mean(1) if self.global_pool == "avg" else x[:, 0]
            return self.head(pooled)

    return drawn(VisionTransformer())


CFG = {
    "architecture": "vit_tiny_patch16_224", "input_size": (3, 224, 224), "crop_pct": 0.9,
    "crop_mode": "center", "interpolation": "bicubic", "mean": (0.4, 0.5, 0.6),
    "std": (0.2, 0.3, 0.4), "num_classes": 1000,
}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "field", "value"),
    [
        ({}, "activation", "gelu"),
        ({"act": nn.GELU("tanh")}, "activation", "gelu_tanh"),
        ({"global_pool": "avg"}, "pooling", "mean"),
    ],
)
def test_timms_module_says_what_no_tensor_shows(
    changes: dict[str, Any], field: str, value: str
) -> None:
    module = of_timm(**changes)
    checkpoint = load_live(LiveModule(module), Request())
    assert getattr(checkpoint.architecture, field) == value
    assert checkpoint.architecture.heads == 2
    assert checkpoint.architecture.image_hw == (32, 48)
    steps = checkpoint.preprocessing
    assert (steps.resize, steps.resize_hw, steps.mean) == ("cover", (35, 53), (0.4, 0.5, 0.6))
    pixels = torch.randn(2, 3, 32, 48)
    with torch.no_grad():
        theirs = module(pixels)
    ours = outputs_of(checkpoint, pixels).logits
    np.testing.assert_allclose(ours.numpy(), theirs.numpy(), atol=1e-4)


def test_timms_module_without_a_cfg_needs_a_processor() -> None:
    assert "timm.data.resolve_model_data_config" in refused(of_timm(pretrained_cfg={}))
    assert "model_args.act_layer: 'relu' is not supported" in refused(of_timm(act=nn.ReLU()))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("vit_tiny_patch16_224", {}),
        ("vit_tiny_patch16_224", {"global_pool": "avg", "init_values": 0.1}),
        ("deit_tiny_distilled_patch16_224", {}),
        ("vit_base_patch16_clip_quickgelu_224", {"embed_dim": 64, "num_heads": 2}),
        ("vit_tiny_patch16_224", {"reg_tokens": 4, "no_embed_class": True, "qk_norm": True}),
    ],
)
def test_timms_own_modules_answer_alike(name: str, options: dict[str, Any]) -> None:
    timm = pytest.importorskip("timm", reason="needs timm")
    module = drawn(timm.create_model(name, img_size=64, depth=2, num_classes=7, **options)).eval()
    checkpoint = load_live(LiveModule(module), Request())
    pixels = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        theirs = module(pixels)
    ours = outputs_of(checkpoint, pixels).logits
    np.testing.assert_allclose(ours.numpy(), theirs.numpy(), atol=1e-3 * float(theirs.abs().max()))


def test_timms_wrapper_in_transformers_is_read_as_timms() -> None:
    pytest.importorskip("timm", reason="needs timm")
    from transformers import TimmWrapperConfig, TimmWrapperForImageClassification

    config = TimmWrapperConfig.from_dict(
        {
            "architecture": "vit_tiny_patch16_224",
            "model_args": {"img_size": 64, "depth": 2},
            "pretrained_cfg": {**CFG, "input_size": [3, 64, 64]},
            "num_classes": 3,
        }
    )
    module = drawn(TimmWrapperForImageClassification(config))
    checkpoint = load_live(LiveModule(module), Request())
    assert checkpoint.architecture.num_classes == 3
    assert checkpoint.preprocessing.mean == (0.4, 0.5, 0.6)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("vit_tiny_patch16_224", {"global_pool": "", "num_classes": 0}, "global_pool: ''"),
        ("vit_base_patch16_siglip_224", {"embed_dim": 64, "num_heads": 2}, "attention pooling"),
        ("vit_small_patch16_18x2_224", {}, "parallel blocks"),
        ("vit_tiny_r_s16_p8_224", {}, "a ResNet before the patches"),
        ("eva02_tiny_patch14_224", {}, "timm's Eva is no plain Vision Transformer"),
    ],
)
def test_timms_other_models_are_refused_by_name(
    name: str, options: dict[str, Any], message: str
) -> None:
    timm = pytest.importorskip("timm", reason="needs timm")
    size = {} if "eva02" in name else {"img_size": 64}
    assert message in refused(timm.create_model(name, depth=2, **size, **options))


def test_a_module_that_is_compiled_in_place_is_asked_without_compiling(processor: Path) -> None:
    def backend(graph: Any, inputs: Any) -> Any:
        raise AssertionError("it was compiled")

    module = vit()
    module.compile(backend=backend)
    checkpoint = load_live(LiveModule(module, processor), Request())
    assert checkpoint.architecture.num_classes == 3


def test_torchvisions_module_without_a_head_gives_features() -> None:
    torchvision = pytest.importorskip("torchvision", reason="needs torchvision")
    module = torchvision.models.VisionTransformer(32, 16, 2, 4, 16, 32, num_classes=3)
    module.heads = nn.Identity()
    checkpoint = load_live(LiveModule(drawn(module)), Request())
    assert checkpoint.architecture.num_classes == 0


def of_torchvision(heads: nn.Module) -> nn.Module:
    """What stands in for torchvision's VisionTransformer where it is not installed.

    Built from torchvision's description (vision_transformer.py); tests with itself are below.
    """

    class EncoderBlock(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.num_heads = 4
            self.ln_1, self.ln_2 = nn.LayerNorm(16, 1e-5), nn.LayerNorm(16, 1e-5)
            self.self_attention = nn.MultiheadAttention(16, 4, batch_first=True)
            self.mlp = nn.Sequential(
                nn.Linear(16, 32), nn.GELU(), nn.Dropout(0.5), nn.Linear(32, 16), nn.Dropout(0.5)
            )

        def forward(self, x: Tensor) -> Tensor:
            y = self.ln_1(x)
            x = x + self.self_attention(y, y, y, need_weights=False)[0]
            return x + self.mlp(self.ln_2(x))

    class VisionTransformer(nn.Module):
        __module__ = "torchvision.models.vision_transformer"

        def __init__(self) -> None:
            super().__init__()
            self.image_size, self.num_classes = 32, 5
            self.conv_proj = nn.Conv2d(3, 16, 16, 16)
            self.class_token = nn.Parameter(torch.zeros(1, 1, 16))
            self.encoder = nn.Module()
            self.encoder.pos_embedding = nn.Parameter(torch.zeros(1, 5, 16))
            self.encoder.layers = nn.Sequential(
                OrderedDict((f"encoder_layer_{i}", EncoderBlock()) for i in range(2))
            )
            self.encoder.ln = nn.LayerNorm(16, 1e-5)
            self.heads = heads

        def forward(self, x: Tensor) -> Tensor:
            x = self.conv_proj(x).flatten(2).transpose(1, 2)
            x = torch.cat([self.class_token.expand(len(x), -1, -1), x], 1)
            x = self.encoder.ln(self.encoder.layers(x + self.encoder.pos_embedding))
            return self.heads(x[:, 0])

    return drawn(VisionTransformer())


@pytest.mark.parametrize(
    ("heads", "classes"),
    [
        (nn.Sequential(OrderedDict(head=nn.Linear(16, 5))), 5),
        (nn.Sequential(nn.Dropout(0.5), nn.Linear(16, 7)), 7),  # as people fine-tune it
        (nn.Identity(), 0),
    ],
)
def test_torchvisions_module_says_what_no_tensor_shows(heads: nn.Module, classes: int) -> None:
    module = of_torchvision(heads)
    checkpoint = load_live(LiveModule(module), Request())
    shape = checkpoint.architecture
    assert (shape.heads, shape.layer_norm_eps, shape.num_classes) == (4, 1e-5, classes)
    steps = checkpoint.preprocessing
    assert (steps.resize, steps.resize_hw, steps.crop_hw) == ("cover", (37, 37), (32, 32))
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        theirs = module.eval()(pixels)
    ours = outputs_of(checkpoint, pixels)
    found = ours.logits if classes else ours.features
    np.testing.assert_allclose(found.numpy(), theirs.numpy(), atol=1e-4)


def test_torchvisions_own_module_answers_alike() -> None:
    torchvision = pytest.importorskip("torchvision", reason="needs torchvision")
    module = torchvision.models.VisionTransformer(32, 16, 2, 4, 16, 32, num_classes=3)
    checkpoint = load_live(LiveModule(drawn(module)), Request())
    assert checkpoint.architecture.heads == 4
    assert checkpoint.architecture.layer_norm_eps == 1e-6


def test_a_tensor_of_another_kind_is_refused(tmp_path: Path) -> None:
    class Quantized(torch.Tensor):
        """As torchao's: it looks like bfloat16."""

    module = vit()
    state = {name: tensor.as_subclass(Quantized) for name, tensor in module.state_dict().items()}
    module.state_dict = lambda: state
    assert "is a Quantized, no plain tensor" in refused(module)


def test_a_config_that_contradicts_the_module_is_refused(processor: Path) -> None:
    module = vit()
    module.config.num_attention_heads = 4
    assert "does not compute" in refused(module, processor=processor)
    module.config = SimpleNamespace()
    assert "it has no config" in refused(module, processor=processor)
