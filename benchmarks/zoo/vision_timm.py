"""timm's networks, shrunk where their size is an argument."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import timm
from torch import nn

from zoo.case import Example, Family
from zoo.parts import CE, images

vision = Family("timm")

TRANSFORMER = {"img_size": 32, "patch_size": 8, "depth": 2, "embed_dim": 24, "num_heads": 2}
FOUR = {"depths": (1, 1, 1, 1), "dims": (8, 8, 16, 16)}


def _timm(
    architecture: str,
    *,
    side: int = 32,
    sizes: tuple[int, ...] = (2, 1),
    limit: float = 90.0,
    change: Callable[[nn.Module], Any] | None = None,
    **settings: Any,
) -> None:
    def build() -> Example:
        model = timm.create_model(architecture, num_classes=5, **settings)
        return Example(change(model) if change else model, CE, images(3, side, 5, *sizes))

    vision.add(architecture, build, limit=limit)


_timm("vit_tiny_patch16_224", **TRANSFORMER)
_timm("vit_small_patch16_rope_224", **TRANSFORMER)
_timm("vit_relpos_small_patch16_224", **TRANSFORMER)
_timm("deit_tiny_distilled_patch16_224", **TRANSFORMER)
_timm("deit3_small_patch16_224", **TRANSFORMER)
_timm("beit_base_patch16_224", **TRANSFORMER)
_timm("eva02_tiny_patch14_224", **TRANSFORMER)
_timm("cait_xxs24_224", **TRANSFORMER)
_timm("mixer_s16_224", img_size=32, patch_size=8, num_blocks=2, embed_dim=24)
_timm("gmlp_s16_224", img_size=32, patch_size=8, num_blocks=2, embed_dim=24)
_timm("resmlp_12_224", img_size=32, patch_size=8, num_blocks=2, embed_dim=24)
_timm("convmixer_768_32", depth=2, dim=16, patch_size=4, kernel_size=5)
_timm("swin_tiny_patch4_window7_224", img_size=32, window_size=4, depths=(1, 1), embed_dim=16, num_heads=(2, 2))
_timm("swinv2_tiny_window8_256", img_size=32, window_size=4, depths=(1, 1), embed_dim=16, num_heads=(2, 2))
_timm("convnext_atto", **FOUR)
_timm("convnextv2_atto", **FOUR)
_timm("convnext_tiny_hnf", **FOUR)
_timm("inception_next_atto", **FOUR)
_timm("mambaout_femto", **FOUR)
_timm("poolformer_s12", layers=(1, 1), embed_dims=(8, 16), mlp_ratios=(2, 2), downsamples=(False, True))
_timm("poolformerv2_s12", layers=(1, 1), embed_dims=(8, 16), mlp_ratios=(2, 2), downsamples=(False, True))
_timm("caformer_s18", depths=(1, 1, 1, 1), dims=(8, 8, 32, 32))
_timm("xcit_nano_12_p16_224", img_size=32, depth=2, embed_dim=16, num_heads=2)
_timm(
    "volo_d1_224",
    img_size=32,
    layers=(1, 1),
    embed_dims=(16, 16),
    num_heads=(2, 2),
    patch_size=8,
    mlp_ratio=2,
    downsamples=(True, False),
    outlook_attention=(True, False),
)
_timm(
    "levit_128s",
    side=64,
    img_size=64,
    embed_dim=(16, 24),
    num_heads=(2, 2),
    depth=(1, 1),
    key_dim=8,
    down_ops=(("Subsample", 8, 2, 4, 2, 2),),
)
_timm("efficientformer_l1", layers=(1, 1), embed_dims=(8, 16), num_vit=1)
_timm("efficientformerv2_s0", side=64, depths=(1, 1, 1, 1), embed_dims=(8, 8, 16, 16), num_vit=1, img_size=64)
_timm("mobilevit_xxs", sizes=(1, 1), limit=150)
_timm("mobileone_s0", sizes=(1, 1), limit=150)
_timm("resnet10t")
_timm("resnest14d", limit=150)
_timm("nf_regnet_b0", limit=150)
_timm("regnety_002", limit=150)
_timm("ghostnet_050", limit=150)
_timm("efficientnet_lite0", limit=150)
_timm("tinynet_e", limit=150)
_timm("repvgg_a0", limit=150)
_timm("lcnet_035")
_timm("mixnet_s", limit=150)
_timm(
    "sequencer2d_s",
    img_size=28,
    side=28,
    layers=(1, 1),
    embed_dims=(16, 16),
    hidden_sizes=(8, 8),
    mlp_ratios=(2, 2),
    patch_sizes=(7, 2),
)
_timm("edgenext_xx_small", depths=(1, 1, 1, 1), dims=(8, 16, 16, 16))
_timm("starnet_s1", limit=150)
_timm("hgnetv2_b0", limit=150)
