"""Networks of other libraries: how to build each small, and an example of its inputs.

``CATALOGUE`` maps "torchvision/NAME" and "transformers/NAME" to a
:class:`Case`. Nothing is downloaded: weights are random, configurations small.
Seven classes and 97 tokens are sizes that occur nowhere else, so that layers
which produce the outputs can be told.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from zoo.torchvision_shim import import_torchvision

CLASSES = 7
VOCABULARY = 97


class Case(NamedTuple):
    """A network: ``build()`` makes it, ``inputs(batch)`` an example in float64.

    ``larger(batch)`` is an example of another resolution or sequence length,
    None where the dense network takes one size only. ``output`` names the part
    of the output to keep, where the rest (hidden states of an encoder) would
    pin the widths of the network.
    """

    build: Callable[[], nn.Module]
    inputs: Callable[[int], Any]
    larger: Callable[[int], Any] | None = None
    output: str = ""


def weight(name: str) -> int:
    """Return about how many parameters a network has, to run small ones first."""
    library, _, network = name.partition("/")
    if library == "transformers":
        return 0
    weights = import_torchvision().models.get_model_weights(network)
    return max(choice.meta["num_params"] for choice in weights)


class Only(nn.Module):
    """A model that returns one field of its output, or several as a tuple."""

    def __init__(self, model: nn.Module, *outputs: str) -> None:
        super().__init__()
        self.model = model
        self.outputs = outputs

    def forward(self, **inputs: Tensor) -> Any:
        result = self.model(**inputs)
        fields = tuple(getattr(result, output) for output in self.outputs)
        return fields if len(fields) > 1 else fields[0]


def generator(seed: int) -> torch.Generator:
    """Return a seeded generator."""
    return torch.Generator().manual_seed(seed)


def image(side: int, width: int | None = None) -> Callable[[int], Any]:
    """Return a factory of RGB images."""

    def make(batch: int) -> tuple[Tensor]:
        shape = (batch, 3, side, width or side)
        return (torch.randn(shape, generator=generator(batch), dtype=torch.float64),)

    return make


def pixel_values(side: int) -> Callable[[int], Any]:
    """Return a factory of RGB images under the name that transformers uses."""
    return lambda batch: {"pixel_values": image(side)(batch)[0]}


def input_ids(length: int) -> Callable[[int], Any]:
    """Return a factory of token sequences."""

    def make(batch: int) -> dict[str, Tensor]:
        shape = (batch, length)
        return {"input_ids": torch.randint(3, VOCABULARY, shape, generator=generator(batch))}

    return make


# --- torchvision

# Inception in train mode has a second classifier that needs the whole size.
SIDES = {"inception_v3": 299, "maxvit_t": 224}
FIXED = ("maxvit_t", "vit_")


def torchvision_case(name: str) -> Case:
    """Return the case of a torchvision classifier."""
    extra: dict[str, Any] = {}
    if name in ("googlenet", "inception_v3"):
        extra["init_weights"] = False
    if name.startswith("vit_"):
        extra["image_size"] = 56 if name == "vit_h_14" else 64

    def build() -> nn.Module:
        models = import_torchvision().models
        model: nn.Module = models.get_model(name, weights=None, num_classes=CLASSES, **extra)
        return model

    side = extra.get("image_size", SIDES.get(name, 64))
    larger = None if name.startswith(FIXED) else image(side + 32, side + 64)
    return Case(build, image(side), larger)


def segmentation_case(name: str) -> Case:
    """Return the case of a torchvision segmentation network."""

    def build() -> nn.Module:
        models = import_torchvision().models
        model: nn.Module = models.get_model(
            name, weights=None, weights_backbone=None, num_classes=CLASSES
        )
        return model

    return Case(build, image(64), image(96, 128))


FAMILIES = {
    "alexnet": ("",),
    "convnext_": ("base", "large", "small", "tiny"),
    "densenet": ("121", "161", "169", "201"),
    "efficientnet_": ("b0", "b1", "b2", "b3", "b4", "b5", "b6", "b7"),
    "efficientnet_v2_": ("l", "m", "s"),
    "googlenet": ("",),
    "inception_v3": ("",),
    "maxvit_t": ("",),
    "mnasnet": ("0_5", "0_75", "1_0", "1_3"),
    "mobilenet_": ("v2", "v3_large", "v3_small"),
    "regnet_x_": ("16gf", "1_6gf", "32gf", "3_2gf", "400mf", "800mf", "8gf"),
    "regnet_y_": ("128gf", "16gf", "1_6gf", "32gf", "3_2gf", "400mf", "800mf", "8gf"),
    "resnet": ("101", "152", "18", "34", "50"),
    "resnext": ("101_32x8d", "101_64x4d", "50_32x4d"),
    "shufflenet_v2_": ("x0_5", "x1_0", "x1_5", "x2_0"),
    "squeezenet": ("1_0", "1_1"),
    "swin_": ("b", "s", "t"),
    "swin_v2_": ("b", "s", "t"),
    "vgg": ("11", "11_bn", "13", "13_bn", "16", "16_bn", "19", "19_bn"),
    "vit_": ("b_16", "b_32", "h_14", "l_16", "l_32"),
    "wide_resnet": ("101_2", "50_2"),
}
CLASSIFIERS = tuple(family + size for family, sizes in FAMILIES.items() for size in sizes)
SEGMENTATION = (
    "deeplabv3_mobilenet_v3_large",
    "deeplabv3_resnet50",
    "deeplabv3_resnet101",
    "fcn_resnet50",
    "fcn_resnet101",
    "lraspp_mobilenet_v3_large",
)


# --- transformers: small random configurations


def import_transformers() -> ModuleType:
    """Return transformers; it imports torchvision, which may need its shim."""
    import_torchvision()
    return importlib.import_module("transformers")


def hugging_face(
    kind: str, configuration: str, output: str = "", **settings: Any
) -> Callable[..., Any]:
    """Return a builder of a transformers model from the names of its class and configuration."""

    def build() -> nn.Module:
        transformers = import_transformers()
        config = getattr(transformers, configuration)(**settings)
        model = getattr(transformers, kind)(config)
        return Only(model, output) if output else model

    return build


TEXT = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 40,
}
BERT = {**TEXT, "num_labels": CLASSES}
LLAMA = {**TEXT, "num_key_value_heads": 2, "use_cache": False, "pad_token_id": 0}
VISION = {
    "image_size": 32,
    "patch_size": 8,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "num_labels": CLASSES,
}
SWIN = {
    "image_size": 32,
    "patch_size": 2,
    "embed_dim": 16,
    "depths": [2, 2],
    "num_heads": [2, 4],
    "window_size": 4,
    "num_labels": CLASSES,
}
STAGES = {"hidden_sizes": [16, 24, 32], "depths": [1, 2, 1], "num_labels": CLASSES}


def sequence_pair(batch: int) -> dict[str, Tensor]:
    """Return source and target tokens of an encoder and decoder."""
    source, target = input_ids(9)(batch), input_ids(6)(batch)
    return {**source, "decoder_input_ids": target["input_ids"]}


def longer_pair(batch: int) -> dict[str, Tensor]:
    """Return a longer source and target."""
    source, target = input_ids(13)(batch), input_ids(8)(batch)
    return {**source, "decoder_input_ids": target["input_ids"]}


def image_and_text(batch: int) -> dict[str, Tensor]:
    """Return the inputs of CLIP: images and captions, the end token last."""
    ids = input_ids(9)(batch)["input_ids"]
    ids[:, -1] = VOCABULARY - 1
    return {"input_ids": ids, **pixel_values(32)(batch)}


def speech(batch: int) -> dict[str, Tensor]:
    """Return the inputs of Whisper: log-mel features and decoder tokens."""
    features = torch.randn(batch, 16, 40, generator=generator(batch), dtype=torch.float64)
    return {"input_features": features, "decoder_input_ids": input_ids(6)(batch)["input_ids"]}


def wave(samples: int) -> Callable[[int], Any]:
    """Return a factory of raw sound."""

    def make(batch: int) -> dict[str, Tensor]:
        shape = (batch, samples)
        values = torch.randn(shape, generator=generator(batch), dtype=torch.float64)
        return {"input_values": values}

    return make


def detr() -> nn.Module:
    """Build DETR on a small residual backbone; boxes and classes are its outputs."""
    transformers = import_transformers()
    backbone = transformers.ResNetConfig(
        embedding_size=16,
        hidden_sizes=[16, 24, 32],
        depths=[1, 1, 1],
        out_features=["stage3"],
    )
    config = transformers.DetrConfig(
        use_timm_backbone=False,
        use_pretrained_backbone=False,
        backbone=None,
        backbone_config=backbone,
        d_model=32,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=48,
        decoder_ffn_dim=48,
        num_queries=5,
        num_labels=CLASSES,
    )
    return Only(transformers.DetrForObjectDetection(config), "logits", "pred_boxes")


def clip() -> nn.Module:
    """Build CLIP, both towers; the similarities are its output."""
    transformers = import_transformers()
    tower = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }
    text = {
        **tower,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 20,
        "eos_token_id": VOCABULARY - 1,
    }
    vision = {**tower, "image_size": 32, "patch_size": 8}
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=24)
    return Only(transformers.CLIPModel(config), "logits_per_image")


TRANSFORMERS: dict[str, Case] = {
    "bert": Case(
        hugging_face("BertForSequenceClassification", "BertConfig", **BERT),
        input_ids(9),
        input_ids(14),
    ),
    "distilbert": Case(
        hugging_face(
            "DistilBertForSequenceClassification",
            "DistilBertConfig",
            vocab_size=VOCABULARY,
            dim=32,
            hidden_dim=48,
            n_layers=2,
            n_heads=4,
            max_position_embeddings=40,
            num_labels=CLASSES,
        ),
        input_ids(9),
        input_ids(14),
    ),
    "roberta": Case(
        hugging_face("RobertaForSequenceClassification", "RobertaConfig", **BERT),
        input_ids(9),
        input_ids(14),
    ),
    "gpt2": Case(
        hugging_face(
            "GPT2LMHeadModel",
            "GPT2Config",
            vocab_size=VOCABULARY,
            n_embd=32,
            n_layer=2,
            n_head=4,
            n_inner=48,
            n_positions=40,
            use_cache=False,
        ),
        input_ids(9),
        input_ids(14),
    ),
    "llama": Case(
        hugging_face("LlamaForCausalLM", "LlamaConfig", **LLAMA), input_ids(9), input_ids(14)
    ),
    "qwen2": Case(
        hugging_face("Qwen2ForCausalLM", "Qwen2Config", **LLAMA), input_ids(9), input_ids(14)
    ),
    "mistral": Case(
        hugging_face("MistralForCausalLM", "MistralConfig", **LLAMA, sliding_window=None),
        input_ids(9),
        input_ids(14),
    ),
    # The default implementation has no float64; these two are the ones that do.
    **{
        name: Case(
            hugging_face(
                "MixtralForCausalLM",
                "MixtralConfig",
                **LLAMA,
                num_local_experts=4,
                num_experts_per_tok=2,
                experts_implementation=implementation,
            ),
            input_ids(9),
            input_ids(14),
        )
        for name, implementation in (("mixtral", "eager"), ("mixtral_batched", "batched_mm"))
    },
    "t5": Case(
        hugging_face(
            "T5ForConditionalGeneration",
            "T5Config",
            "logits",
            vocab_size=VOCABULARY,
            d_model=32,
            d_kv=8,
            d_ff=48,
            num_layers=2,
            num_heads=4,
            use_cache=False,
            decoder_start_token_id=0,
        ),
        sequence_pair,
        longer_pair,
    ),
    "vit": Case(hugging_face("ViTForImageClassification", "ViTConfig", **VISION), pixel_values(32)),
    "beit": Case(
        hugging_face("BeitForImageClassification", "BeitConfig", **VISION), pixel_values(32)
    ),
    "deit": Case(
        hugging_face("DeiTForImageClassification", "DeiTConfig", **VISION), pixel_values(32)
    ),
    "swin": Case(
        hugging_face("SwinForImageClassification", "SwinConfig", **SWIN), pixel_values(32)
    ),
    "swinv2": Case(
        hugging_face("Swinv2ForImageClassification", "Swinv2Config", **SWIN), pixel_values(32)
    ),
    "resnet": Case(
        hugging_face("ResNetForImageClassification", "ResNetConfig", **STAGES, embedding_size=16),
        pixel_values(48),
        pixel_values(64),
    ),
    "efficientnet": Case(
        hugging_face(
            "EfficientNetForImageClassification",
            "EfficientNetConfig",
            width_coefficient=0.5,
            depth_coefficient=0.4,
            hidden_dim=640,
            image_size=48,
            num_labels=CLASSES,
        ),
        pixel_values(48),
        pixel_values(64),
    ),
    "convnext": Case(
        hugging_face("ConvNextForImageClassification", "ConvNextConfig", num_stages=3, **STAGES),
        pixel_values(48),
        pixel_values(64),
    ),
    "convnextv2": Case(
        hugging_face(
            "ConvNextV2ForImageClassification", "ConvNextV2Config", num_stages=3, **STAGES
        ),
        pixel_values(48),
        pixel_values(64),
    ),
    "mobilenet_v2": Case(
        hugging_face(
            "MobileNetV2ForImageClassification",
            "MobileNetV2Config",
            depth_multiplier=0.35,
            image_size=64,
            num_labels=CLASSES,
        ),
        pixel_values(64),
        pixel_values(96),
    ),
    "mobilevit": Case(
        hugging_face(
            "MobileViTForImageClassification",
            "MobileViTConfig",
            image_size=64,
            hidden_sizes=[24, 32, 40],
            neck_hidden_sizes=[16, 16, 24, 32, 40, 48, 80],
            num_attention_heads=4,
            num_labels=CLASSES,
        ),
        pixel_values(64),
        pixel_values(128),
    ),
    "segformer": Case(
        hugging_face(
            "SegformerForSemanticSegmentation",
            "SegformerConfig",
            num_encoder_blocks=3,
            hidden_sizes=[16, 24, 32],
            depths=[1, 1, 1],
            sr_ratios=[4, 2, 1],
            patch_sizes=[7, 3, 3],
            strides=[4, 2, 2],
            num_attention_heads=[1, 2, 4],
            mlp_ratios=[2, 2, 2],
            decoder_hidden_size=20,
            num_labels=CLASSES,
        ),
        pixel_values(64),
        pixel_values(96),
    ),
    "regnet": Case(
        hugging_face(
            "RegNetForImageClassification",
            "RegNetConfig",
            **STAGES,
            embedding_size=16,
            groups_width=8,
        ),
        pixel_values(48),
        pixel_values(64),
    ),
    "dinov2": Case(
        hugging_face(
            "Dinov2ForImageClassification",
            "Dinov2Config",
            image_size=32,
            patch_size=8,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            mlp_ratio=2,
            num_labels=CLASSES,
        ),
        pixel_values(32),
        pixel_values(48),
    ),
    "clip": Case(clip, image_and_text),
    "whisper": Case(
        hugging_face(
            "WhisperForConditionalGeneration",
            "WhisperConfig",
            "logits",
            vocab_size=VOCABULARY,
            num_mel_bins=16,
            d_model=32,
            encoder_layers=2,
            decoder_layers=2,
            encoder_attention_heads=4,
            decoder_attention_heads=4,
            encoder_ffn_dim=48,
            decoder_ffn_dim=48,
            max_source_positions=20,
            max_target_positions=20,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
            decoder_start_token_id=1,
            suppress_tokens=None,
            begin_suppress_tokens=None,
            use_cache=False,
        ),
        speech,
    ),
    "wav2vec2": Case(
        hugging_face(
            "Wav2Vec2ForCTC",
            "Wav2Vec2Config",
            vocab_size=VOCABULARY,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=48,
            conv_dim=[24, 24, 24],
            conv_stride=[5, 2, 2],
            conv_kernel=[10, 3, 2],
            num_feat_extract_layers=3,
            num_conv_pos_embeddings=16,
            num_conv_pos_embedding_groups=4,
            mask_time_prob=0.0,
            pad_token_id=0,
        ),
        wave(600),
        wave(900),
    ),
    "mamba": Case(
        hugging_face(
            "MambaForCausalLM",
            "MambaConfig",
            vocab_size=VOCABULARY,
            hidden_size=32,
            state_size=8,
            num_hidden_layers=2,
            time_step_rank=6,
            use_cache=False,
        ),
        input_ids(9),
        input_ids(14),
    ),
    "detr": Case(detr, pixel_values(64), pixel_values(96)),
    "longformer": Case(
        hugging_face(
            "LongformerForSequenceClassification",
            "LongformerConfig",
            "logits",
            **BERT,
            attention_window=[8, 8],
        ),
        input_ids(16),
        input_ids(24),
    ),
    "funnel": Case(
        hugging_face(
            "FunnelForSequenceClassification",
            "FunnelConfig",
            "logits",
            vocab_size=VOCABULARY,
            d_model=32,
            n_head=4,
            d_head=8,
            d_inner=48,
            block_sizes=[1, 1, 1],
            num_labels=CLASSES,
        ),
        input_ids(16),
        input_ids(24),
    ),
}

CATALOGUE: dict[str, Case] = {
    **{f"torchvision/{name}": torchvision_case(name) for name in CLASSIFIERS},
    **{f"torchvision/{name}": segmentation_case(name) for name in SEGMENTATION},
    **{f"transformers/{name}": case for name, case in TRANSFORMERS.items()},
}
