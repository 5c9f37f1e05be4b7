"""torchvision's networks, shrunk where their size is an argument."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
import torchvision
from torch import nn
from torchvision import models
from torchvision.models import convnext, efficientnet, mobilenetv3, regnet, resnet, swin_transformer, video
from torchvision.models.googlenet import BasicConv2d, Inception
from torchvision.models.inception import BasicConv2d as InceptionConv2d
from torchvision.models.inception import InceptionA, InceptionB

from zoo.case import Example, Family
from zoo.parts import CE, Forward, classes, head, images, some_training

vision = Family("torchvision")


def _images(name: str, make: Callable[[], nn.Module], *sizes: int, side: int = 32, limit: float = 90.0) -> None:
    vision.add(name, lambda: Example(some_training(make()), CE, images(3, side, 5, *(sizes or (2, 1)))), limit=limit)


def _resnet(block: type[nn.Module], **settings: int) -> nn.Module:
    """Of one block a stage and an eighth of the width."""
    network = resnet.ResNet.__new__(resnet.ResNet)
    nn.Module.__init__(network)
    network._norm_layer = nn.BatchNorm2d  # noqa: SLF001 - the width is no argument
    network.inplanes, network.dilation = 8, 1
    network.groups, network.base_width = settings.get("groups", 1), settings.get("width", 64)
    network.conv1, network.bn1 = nn.Conv2d(3, 8, 7, 2, 3, bias=False), nn.BatchNorm2d(8)
    network.relu, network.maxpool = nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)
    for i, width in enumerate((8, 16, 16, 32)):
        setattr(network, f"layer{i + 1}", network._make_layer(block, width, 1, 1 if i == 0 else 2))  # noqa: SLF001
    network.avgpool, network.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(32 * block.expansion, 5)
    return network


def _small(depths: tuple[int, ...]) -> list[convnext.CNBlockConfig]:
    widths = (8, 16, None)
    return [convnext.CNBlockConfig(a, b, d) for a, b, d in zip(widths[:2], widths[1:], depths, strict=True)]


def _vgg(*, norm: bool) -> nn.Module:
    features = models.vgg.make_layers([8, "M", 16, "M", 16, 16, "M"], batch_norm=norm)
    network = models.VGG(features, num_classes=5, init_weights=False)
    network.classifier = nn.Sequential(nn.Linear(16 * 49, 16), nn.ReLU(True), nn.Dropout(), nn.Linear(16, 5))
    return network


def _mobile_v3() -> nn.Module:
    row = partial(mobilenetv3.InvertedResidualConfig, width_mult=1.0)
    rows = [
        row(8, 3, 8, 8, True, "RE", 2, 1),
        row(8, 3, 24, 16, False, "HS", 1, 1),
        row(16, 5, 32, 16, True, "HS", 2, 1),
    ]
    return mobilenetv3.MobileNetV3(rows, 16, num_classes=5)


def _efficient(kind: str) -> nn.Module:
    if kind == "v1":
        row = efficientnet.MBConvConfig
        rows = [row(1, 3, 1, 16, 8, 1, 1, 1), row(4, 5, 2, 8, 16, 2, 1, 1)]
    else:
        rows = [efficientnet.FusedMBConvConfig(2, 3, 1, 8, 8, 1), efficientnet.MBConvConfig(4, 3, 2, 8, 16, 1)]
    return models.EfficientNet(rows, dropout=0.1, num_classes=5, last_channel=32)


def _regnet(**settings: float) -> nn.Module:
    rows = regnet.BlockParams.from_init_params(depth=4, w_0=16, w_a=20.0, w_m=2.2, group_width=8, **settings)
    return models.RegNet(rows, num_classes=5, stem_width=8)


_images("ResNet, basic blocks", lambda: _resnet(resnet.BasicBlock), 6, 3)
_images("ResNet, bottlenecks", lambda: _resnet(resnet.Bottleneck))
_images("ResNeXt", lambda: _resnet(resnet.Bottleneck, groups=4, width=32))
_images("Wide ResNet", lambda: _resnet(resnet.Bottleneck, width=128))
_images(
    "AlexNet, its convolutions",
    lambda: nn.Sequential(models.alexnet(num_classes=5).features[:6], head(192, 5)),
    side=63,
)
_images("VGG", lambda: _vgg(norm=False))
_images("VGG with batch norm", lambda: _vgg(norm=True))
_images("SqueezeNet 1.1", lambda: models.squeezenet1_1(num_classes=5), side=48)
_images(
    "Inception blocks of GoogLeNet",
    lambda: nn.Sequential(
        BasicConv2d(3, 16, kernel_size=3, stride=2),
        Inception(16, 8, 8, 12, 4, 8, 8),
        Inception(36, 8, 8, 12, 4, 8, 8),
        head(36, 5),
    ),
)
_images(
    "Inception v3 blocks A and B",
    lambda: nn.Sequential(
        InceptionConv2d(3, 8, kernel_size=3),
        InceptionA(8, 8),
        InceptionB(232),
        head(712, 5),
    ),
    1,
    1,
    side=20,
)
_images("DenseNet", lambda: models.DenseNet(8, (2, 2), 16, num_classes=5))
_images(
    "MobileNet v2",
    lambda: models.MobileNetV2(num_classes=5, width_mult=0.25, inverted_residual_setting=[[1, 8, 1, 1], [4, 16, 2, 2]]),
)
_images("MobileNet v3", _mobile_v3)
_images("MNASNet 0.5", lambda: models.MNASNet(0.1, num_classes=5), side=32, limit=150)
_images("ShuffleNet v2", lambda: models.ShuffleNetV2([1, 1, 1], [24, 32, 48, 64, 128], num_classes=5), side=48)
_images("EfficientNet", lambda: _efficient("v1"))
_images("EfficientNet v2", lambda: _efficient("v2"))
_images("RegNet X", _regnet)
_images("RegNet Y", lambda: _regnet(se_ratio=0.25))
_images("ConvNeXt", lambda: models.ConvNeXt(_small((1, 1)), num_classes=5))
_images(
    "ConvNeXt, 96 images of 48x48 (the trace is chosen)",
    lambda: models.ConvNeXt(_small((1, 1)), num_classes=5),
    96,
    side=48,
    limit=150,
)
_images("Vision transformer", lambda: models.VisionTransformer(32, 8, 2, 4, 32, 64, num_classes=5))
_images("Swin transformer", lambda: models.SwinTransformer([4, 4], 16, [1, 1], [2, 2], [4, 4], num_classes=5))
_images(
    "Swin transformer v2",
    lambda: models.SwinTransformer(
        [4, 4],
        16,
        [1, 1],
        [2, 2],
        [4, 4],
        num_classes=5,
        block=swin_transformer.SwinTransformerBlockV2,
        downsample_layer=swin_transformer.PatchMergingV2,
    ),
)
_images("MaxViT", lambda: models.MaxVit((32, 32), 8, 4, [8, 16], [1, 1], 8, 0.0, num_classes=5), 1, 1, limit=150)


def _video(name: str, make: Callable[[], nn.Module]) -> None:
    data = lambda: [(torch.randn(n, 3, 4, 16, 16), classes(5, n)) for n in (2, 1)]
    vision.add(name, lambda: Example(make(), CE, data()))


_video(
    "video: 3-D convolutions",
    lambda: nn.Sequential(
        video.resnet.BasicStem(),
        video.resnet.BasicBlock(64, 64, video.resnet.Conv3DSimple),
        nn.AdaptiveAvgPool3d(1),
        nn.Flatten(),
        nn.Linear(64, 5),
    ),
)
_video(
    "video: (2+1)-D convolutions",
    lambda: nn.Sequential(
        video.resnet.R2Plus1dStem(),
        video.resnet.BasicBlock(64, 64, video.resnet.Conv2Plus1D),
        nn.AdaptiveAvgPool3d(1),
        nn.Flatten(),
        nn.Linear(64, 5),
    ),
)
_video(
    "video: Swin 3-D",
    lambda: video.swin_transformer.SwinTransformer3d([2, 4, 4], 16, [1, 1], [2, 2], [2, 4, 4], num_classes=5),
)


@vision.case()
def stochastic_depth() -> Example:
    """StochasticDepth, DropBlock and FrozenBatchNorm in evaluation mode."""
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        torchvision.ops.FrozenBatchNorm2d(8),
        torchvision.ops.DropBlock2d(0.1, 3),
        nn.ReLU(),
        torchvision.ops.StochasticDepth(0.2, "row"),
        torchvision.ops.SqueezeExcitation(8, 4),
        head(8, 5),
    )
    return Example(model, CE, images(3, 10, 5))


@vision.case()
def pyramid() -> Example:
    """Feature pyramid network."""

    def forward(self: nn.Module, x: torch.Tensor) -> torch.Tensor:
        a = F.relu(self.a(x))
        levels = self.fpn({"a": a, "b": F.relu(self.b(a))})
        return self.h(levels["a"]) + self.h(levels["b"])

    model = Forward(
        forward,
        a=nn.Conv2d(3, 8, 3, 2, 1),
        b=nn.Conv2d(8, 16, 3, 2, 1),
        fpn=torchvision.ops.FeaturePyramidNetwork([8, 16], 8),
        h=head(8, 5),
    )
    return Example(model, CE, images(3, 16, 5))
