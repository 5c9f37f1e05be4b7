"""timm's networks, shrunk where their size is an argument."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import timm
from timm.layers import GatedMlp
from timm.models.convmixer import ConvMixer
from timm.models.metaformer import Attention, LayerNorm2dNoBias, LayerNormNoBias, MetaFormer, SepConv
from timm.models.mlp_mixer import Affine, MlpMixer, ResBlock, SpatialGatingBlock
from timm.models.volo import VOLO
from torch import nn

from zoo.case import Example, Family
from zoo.parts import CE, images, some_training

vision = Family("timm")

TRANSFORMER = {"img_size": 32, "patch_size": 8, "depth": 2, "embed_dim": 24, "num_heads": 2}
MIXER = {"img_size": 32, "patch_size": 8, "num_blocks": 2, "embed_dim": 24}
FOUR = {"depths": (1, 1, 1, 1), "dims": (8, 8, 16, 16)}
# Networks whose size is no argument take seconds for a trace, and get one image a batch.
LONG: dict[str, Any] = {"sizes": (1, 1), "limit": 150.0}


def _uncached(model: nn.Module) -> nn.Module:
    """The model with the products of its parameters that it would keep in evaluation mode computed each time."""
    for module in model.modules():
        if hasattr(module, "attention_bias_cache"):
            module.training = True
    return model


def _images(
    name: str, make: Callable[[], nn.Module], *, side: int = 32, sizes: tuple[int, ...] = (2, 1), limit: float = 90.0
) -> None:
    def build() -> Example:
        return Example(some_training(make()), CE, images(3, side, 5, *sizes), plain=_uncached)

    vision.add(name, build, limit=limit)


def _timm(name: str, *, side: int = 32, sizes: tuple[int, ...] = (2, 1), limit: float = 90.0, **settings: Any) -> None:
    _images(name, lambda: timm.create_model(name, num_classes=5, **settings), side=side, sizes=sizes, limit=limit)


_timm("vit_tiny_patch16_224", **TRANSFORMER)
_timm("vit_small_patch16_rope_224", **TRANSFORMER)
_timm("vit_relpos_small_patch16_224", **TRANSFORMER)
_timm("deit_tiny_distilled_patch16_224", **TRANSFORMER)
_timm("deit3_small_patch16_224", **TRANSFORMER)
_timm("beit_base_patch16_224", **TRANSFORMER)
_timm("eva02_tiny_patch14_224", **TRANSFORMER)
_timm("cait_xxs24_224", **TRANSFORMER)
_images("MLP-Mixer", lambda: MlpMixer(5, **MIXER))
_images("gMLP", lambda: MlpMixer(5, **MIXER, mlp_ratio=2, block_layer=SpatialGatingBlock, mlp_layer=GatedMlp))
_images("ResMLP", lambda: MlpMixer(5, **MIXER, mlp_ratio=2, block_layer=ResBlock, norm_layer=Affine))
_images("ConvMixer", lambda: ConvMixer(16, 2, kernel_size=5, patch_size=4, num_classes=5))
_timm("swin_tiny_patch4_window7_224", img_size=32, window_size=4, depths=(1, 1), embed_dim=16, num_heads=(2, 2))
_timm("swinv2_tiny_window8_256", img_size=32, window_size=4, depths=(1, 1), embed_dim=16, num_heads=(2, 2))
_timm("convnext_atto", **FOUR)
_timm("convnextv2_atto", **FOUR)
_timm("convnext_tiny_hnf", **FOUR)
_timm("inception_next_atto", **FOUR)
_timm("mambaout_femto", **FOUR)
_images("PoolFormer v2", lambda: MetaFormer(num_classes=5, depths=(1, 1), dims=(8, 16), use_mlp_head=False))
_images(
    "CAFormer",
    lambda: MetaFormer(
        num_classes=5,
        depths=(1, 1),
        dims=(8, 32),
        token_mixers=[SepConv, Attention],
        norm_layers=[LayerNorm2dNoBias, LayerNormNoBias],
    ),
)
_timm("xcit_nano_12_p16_224", img_size=32, depth=2, embed_dim=16, num_heads=2)
_images(
    "VOLO",
    lambda: VOLO(
        [1, 1], 32, num_classes=5, stem_hidden_dim=8, embed_dims=[16, 16], num_heads=[2, 2], use_aux_head=False
    ),
)
_timm("levit_128s", side=64, img_size=64, embed_dim=(16, 24), num_heads=(2, 2), depth=(1, 1), key_dim=8)
_timm("efficientformer_l1", side=224, **LONG)
_timm("efficientformerv2_s0", side=64, depths=(1, 1, 1, 1), embed_dims=(8, 8, 16, 16), num_vit=1, img_size=64)
_timm("mobilevit_xxs", **LONG)
_timm("resnest14d", **LONG)
_timm("regnety_002", **LONG)
_timm("ghostnet_050", **LONG)
_timm("efficientnet_lite0", **LONG)
_timm("repvgg_a0", **LONG)
_timm("lcnet_035", **LONG)
_timm("edgenext_xx_small", depths=(1, 1, 1, 1), dims=(8, 16, 16, 16))
_timm("starnet_s1", **LONG)
