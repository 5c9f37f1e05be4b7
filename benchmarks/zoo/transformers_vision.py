"""Vision models of transformers, with random weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn

from zoo.case import Example, Family
from zoo.parts import CE, classes, some_training
from zoo.shrunk import VIT, configured

vision = Family("transformers: vision")


def _pixels(side: int, *sizes: int) -> list[dict[str, Tensor]]:
    return [{"pixel_values": torch.randn(n, 3, side, side)} for n in sizes or (3, 2)]


def _classifier(name: str, architecture: str, config: Callable[[], Any], side: int = 16, **settings: Any) -> None:
    def build() -> Example:
        model = some_training(getattr(transformers, architecture)(config()))
        return Example(model, CE, [(x, classes(4, len(x["pixel_values"]))) for x in _pixels(side)])

    vision.add(name, build, **settings)


_classifier("ViT", "ViTForImageClassification", lambda: configured("ViTConfig", num_labels=4, **VIT))
_classifier("DeiT", "DeiTForImageClassification", lambda: configured("DeiTConfig", num_labels=4, **VIT))
_classifier(
    "BEiT",
    "BeitForImageClassification",
    lambda: configured("BeitConfig", num_labels=4, use_relative_position_bias=True, **VIT),
)
_classifier("DINOv2", "Dinov2ForImageClassification", lambda: configured("Dinov2Config", num_labels=4, **VIT))
_classifier(
    "Swin",
    "SwinForImageClassification",
    lambda: configured(
        "SwinConfig",
        num_labels=4,
        image_size=16,
        patch_size=2,
        embed_dim=8,
        depths=[1, 1],
        num_heads=[2, 2],
        window_size=4,
    ),
)
_classifier(
    "Swin v2",
    "Swinv2ForImageClassification",
    lambda: configured(
        "Swinv2Config",
        num_labels=4,
        image_size=16,
        patch_size=2,
        embed_dim=8,
        depths=[1, 1],
        num_heads=[2, 2],
        window_size=4,
    ),
)
_classifier(
    "ConvNeXt of transformers",
    "ConvNextForImageClassification",
    lambda: configured("ConvNextConfig", num_labels=4, hidden_sizes=[8, 8], depths=[1, 1], num_stages=2),
    32,
)
_classifier(
    "ResNet of transformers",
    "ResNetForImageClassification",
    lambda: configured(
        "ResNetConfig", num_labels=4, embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic"
    ),
    32,
)
_classifier(
    "MobileNet v2 of transformers",
    "MobileNetV2ForImageClassification",
    lambda: configured("MobileNetV2Config", num_labels=4, depth_multiplier=0.25, image_size=32),
    32,
    limit=150.0,
)
_classifier(
    "PVT",
    "PvtForImageClassification",
    lambda: configured(
        "PvtConfig",
        num_labels=4,
        image_size=32,
        num_encoder_blocks=2,
        depths=[1, 1],
        sequence_reduction_ratios=[2, 1],
        hidden_sizes=[8, 8],
        patch_sizes=[4, 2],
        strides=[4, 2],
        num_attention_heads=[1, 2],
        mlp_ratios=[2, 2],
    ),
    32,
)
_classifier(
    "PoolFormer",
    "PoolFormerForImageClassification",
    lambda: configured(
        "PoolFormerConfig",
        num_labels=4,
        depths=[1, 1],
        hidden_sizes=[8, 8],
        num_encoder_blocks=2,
        patch_sizes=[7, 3],
        strides=[4, 2],
        padding=[2, 1],
    ),
    32,
)
_classifier(
    "CvT",
    "CvtForImageClassification",
    lambda: configured("CvtConfig", num_labels=4, embed_dim=[8, 8, 16], num_heads=[1, 1, 2], depth=[1, 2, 3]),
    32,
)
_classifier(
    "FocalNet",
    "FocalNetForImageClassification",
    lambda: configured(
        "FocalNetConfig",
        num_labels=4,
        image_size=16,
        patch_size=2,
        embed_dim=8,
        depths=[1, 1],
        focal_levels=[2, 2],
        focal_windows=[3, 3],
    ),
)


@vision.case()
def masked_autoencoder() -> Example:
    """ViT-MAE, the noise of the mask an input, loss inside the model."""
    model = some_training(
        transformers.ViTMAEForPreTraining(
            configured(
                "ViTMAEConfig",
                decoder_hidden_size=16,
                decoder_num_hidden_layers=1,
                decoder_num_attention_heads=2,
                decoder_intermediate_size=24,
                **{**VIT, "patch_size": 4},
            )
        )
    )

    def loss(o: Tensor, batch: Any) -> Tensor:
        told = model.patchify(batch[0]["pixel_values"])
        mask = batch[1]
        return (((o - told) ** 2).mean(-1) * mask).sum() / mask.sum()

    data = []
    for x in _pixels(16):
        noise = torch.rand(len(x["pixel_values"]), 16)
        rank = noise.argsort(1).argsort(1)
        data.append(({**x, "noise": noise}, (rank >= 4).float()))
    return Example(model, lambda o, _: o.loss, data, outputs=lambda m, b: m(**b[0]).logits, criterion=loss)


@vision.case()
def masked_image_modelling() -> Example:
    """ViT for masked image modelling, a boolean mask among the inputs."""
    model = some_training(transformers.ViTForMaskedImageModeling(configured("ViTConfig", encoder_stride=8, **VIT)))
    data = []
    for x in _pixels(16):
        mask = torch.rand(len(x["pixel_values"]), 4) < 0.5
        data.append(({**x, "bool_masked_pos": mask}, x["pixel_values"]))
    loss = F.l1_loss
    return Example(
        model,
        lambda o, y: loss(o.reconstruction, y),
        data,
        outputs=lambda m, b: m(**b[0]).reconstruction,
        criterion=lambda o, b: loss(o, b[1]),
    )


@vision.case()
def segformer() -> Example:
    """SegFormer, logits enlarged in the loss, ignored pixels."""
    config = configured(
        "SegformerConfig",
        num_labels=4,
        num_encoder_blocks=2,
        depths=[1, 1],
        sr_ratios=[2, 1],
        hidden_sizes=[8, 8],
        patch_sizes=[7, 3],
        strides=[4, 2],
        num_attention_heads=[1, 2],
        mlp_ratios=[2, 2],
        decoder_hidden_size=8,
    )

    def loss(o: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(F.interpolate(o, size=y.shape[-2:], mode="bilinear"), y, ignore_index=255)

    data = []
    for x in _pixels(32, 2, 1):
        y = classes(4, len(x["pixel_values"]), 32, 32)
        y[0, :20] = 255
        data.append((x, y))
    return Example(
        transformers.SegformerForSemanticSegmentation(config),
        lambda o, y: loss(o.logits, y),
        data,
        outputs=lambda m, b: m(**b[0]).logits,
        criterion=lambda o, b: loss(o, b[1]),
        weight=lambda b: (b[1] != 255).sum(),
    )


@vision.case(limit=150)
def detr() -> Example:
    """DETR, Hungarian matching and its losses inside the model, labels a list of dictionaries."""
    backbone = configured(
        "ResNetConfig",
        embedding_size=8,
        hidden_sizes=[8, 8],
        depths=[1, 1],
        layer_type="basic",
        out_features=["stage2"],
    )
    config = configured(
        "DetrConfig",
        use_timm_backbone=False,
        use_pretrained_backbone=False,
        backbone=None,
        backbone_config=backbone,
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=24,
        decoder_ffn_dim=24,
        num_queries=4,
        num_labels=3,
    )
    model = transformers.DetrForObjectDetection(config)
    data = []
    for n in (2, 1):
        labels = [{"class_labels": classes(3, 2), "boxes": torch.rand(2, 4) * 0.3 + 0.3} for _ in range(n)]
        data.append(({"pixel_values": torch.randn(n, 3, 32, 32), "labels": labels}, torch.zeros(n)))

    def logits(m: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
        out = m(pixel_values=batch[0]["pixel_values"])
        return out.logits, out.pred_boxes

    def loss(o: Any, batch: Any) -> Tensor:
        return model.loss_function(o[0], batch[0]["labels"], o[0].device, o[1], model.config)[0]

    return Example(model, lambda o, _: o.loss, data, outputs=logits, criterion=loss)


@vision.case()
def depth() -> Example:
    """DPT, depth estimation with a scale-invariant loss."""
    config = configured(
        "DPTConfig",
        hidden_size=16,
        num_hidden_layers=4,
        num_attention_heads=2,
        intermediate_size=24,
        image_size=32,
        patch_size=8,
        backbone_out_indices=[0, 1, 2, 3],
        neck_hidden_sizes=[8, 8, 8, 8],
        fusion_hidden_size=8,
        reassemble_factors=[4, 2, 1, 0.5],
        is_hybrid=False,
    )

    def loss(o: Tensor, y: Tensor) -> Tensor:
        gap = torch.log(o.relu() + 0.1) - y.log()
        return gap.square().mean() - 0.5 * gap.mean((1, 2)).square().mean()

    data = [(x, torch.rand(len(x["pixel_values"]), 64, 64) + 0.1) for x in _pixels(32, 2, 1)]
    return Example(
        transformers.DPTForDepthEstimation(config),
        lambda o, y: loss(o.predicted_depth, y),
        data,
        outputs=lambda m, b: m(**b[0]).predicted_depth,
        criterion=lambda o, b: loss(o, b[1]),
    )
