"""Detection and segmentation."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from torchvision import ops
from torchvision.models import segmentation as zoo_of_segmentation
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.detection import FCOS, FasterRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator, DefaultBoxGenerator
from torchvision.models.detection.ssd import SSD, SSDHead

from zoo.case import Example, Family
from zoo.parts import Forward, classes

detection = Family("detection")
segmentation = Family("segmentation")


def _backbone(width: int = 8) -> nn.Module:
    made = nn.Sequential(nn.Conv2d(3, 8, 3, 4, 1), nn.ReLU(), nn.Conv2d(8, width, 3, 2, 1), nn.ReLU())
    made.out_channels = width
    return made


def _scenes() -> list[Any]:
    """Batches of images with unequal numbers of boxes."""

    def one(count: int) -> dict[str, Tensor]:
        corner = torch.rand(count, 2) * 20
        return {
            "boxes": torch.cat([corner, corner + 12 + torch.rand(count, 2) * 20], 1),
            "labels": classes(3, count) + 1,
        }

    return [([torch.rand(3, 64, 64) for _ in counts], [one(c) for c in counts]) for counts in ((2, 1), (3,))]


class _Losses(nn.Module):
    """A detector of torchvision in training mode that returns the sum of its losses."""

    def __init__(self, detector: nn.Module) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, images: list[Tensor], targets: list[dict[str, Tensor]]) -> Tensor:
        self.detector.training = True
        for module in (getattr(self.detector, "rpn", None), getattr(self.detector, "roi_heads", None)):
            if module is not None:
                module.training = True
        return sum(self.detector(images, targets).values())


def _detector(name: str, make: Any, **settings: Any) -> None:
    def build() -> Example:
        # The loss is what the model returns; there are no logits to be had.
        return Example(
            _Losses(make()), lambda loss, _: loss, [(scene, torch.zeros(len(scene[0]))) for scene in _scenes()]
        )

    detection.add(name, build, **settings)


ANCHORS = {"anchor_generator": AnchorGenerator(((16, 32),), ((1.0,),)), "min_size": 64, "max_size": 64}
_detector("RetinaNet, losses inside", lambda: RetinaNet(_backbone(), 4, **ANCHORS), limit=150)
_detector(
    "FCOS, losses inside",
    lambda: FCOS(_backbone(32), 4, anchor_generator=AnchorGenerator(((8,),), ((1.0,),)), min_size=64, max_size=64),
    limit=150,
)


@detection.case(limit=150)
def ssd() -> Example:
    """SSD, losses inside."""

    class Features(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = _backbone(), nn.Conv2d(8, 8, 3, 2, 1)

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            a = self.a(x)
            return {"0": a, "1": F.relu(self.b(a))}

    features = Features()
    features.out_channels = [8, 8]
    head = SSDHead([8, 8], [4, 4], 4)
    model = SSD(features, DefaultBoxGenerator([[2], [2]], 0.2, 0.6), (64, 64), 4, head=head)
    return Example(_Losses(model), lambda loss, _: loss, [(scene, torch.zeros(len(scene[0]))) for scene in _scenes()])


@detection.case(sentence="Faster R-CNN samples its proposals at random in training mode")
def faster_rcnn() -> Example:
    """Faster R-CNN, losses inside, proposals sampled."""
    pool = ops.MultiScaleRoIAlign(["0"], 3, 2)
    model = FasterRCNN(
        _backbone(),
        4,
        min_size=64,
        max_size=64,
        rpn_anchor_generator=ANCHORS["anchor_generator"],
        box_roi_pool=pool,
        box_detections_per_img=5,
        rpn_batch_size_per_image=4,
        box_batch_size_per_image=4,
    )
    return Example(_Losses(model), lambda loss, _: loss, [(scene, torch.zeros(len(scene[0]))) for scene in _scenes()])


@detection.case()
def region_pooling() -> Example:
    """Fast R-CNN's head: roi_align at given proposals."""

    def forward(self: Any, x: Tensor, boxes: list[Tensor]) -> Any:
        z = ops.roi_align(torch.tanh(self.c(x)), boxes, 3, spatial_scale=1.0, sampling_ratio=2, aligned=True).flatten(1)
        return self.k(z), self.b(z)

    loss = lambda o, y: F.cross_entropy(o[0], y[0]) + F.smooth_l1_loss(o[1], y[1])
    data = []
    for n in (2, 1):
        corner = torch.rand(n * 2, 2) * 5
        boxes = torch.cat([corner, corner + 4], 1)
        data.append(((torch.randn(n, 3, 10, 10), list(boxes.split(2))), (classes(3, 2 * n), torch.randn(2 * n, 4))))
    return Example(
        Forward(forward, c=nn.Conv2d(3, 4, 3, padding=1), k=nn.Linear(36, 3), b=nn.Linear(36, 4)), loss, data
    )


@detection.case()
def deformable() -> Example:
    """Deformable convolution."""

    def forward(self: Any, x: Tensor) -> Tensor:
        x = torch.tanh(self.c(x))
        return self.h(self.d(x, 0.1 * self.o(x)).mean((2, 3)))

    parts = {
        "c": nn.Conv2d(3, 4, 3, padding=1),
        "o": nn.Conv2d(4, 18, 3, padding=1),
        "d": ops.DeformConv2d(4, 6, 3, padding=1),
        "h": nn.Linear(6, 3),
    }
    return Example(
        Forward(forward, **parts), nn.CrossEntropyLoss(), [(torch.randn(n, 3, 8, 8), classes(3, n)) for n in (2, 1)]
    )


def _boxes(o: Tensor) -> Tensor:
    center, size = o[..., :2].sigmoid(), o[..., 2:].sigmoid() * 0.5 + 0.05
    return torch.cat([center - size / 2, center + size / 2], -1)


@detection.case()
def yolo() -> Example:
    """YOLO-like grid: objectness, classes and generalised IoU at matched cells."""

    def loss(o: Tensor, targets: list[dict[str, Tensor]]) -> Tensor:
        total = 0
        for grid, t in zip(o.flatten(2).transpose(1, 2), targets, strict=True):
            seen = torch.zeros(len(grid)).to(grid)
            seen[t["cell"]] = 1
            total = total + F.binary_cross_entropy_with_logits(grid[:, 0], seen)
            total = total + ops.generalized_box_iou_loss(_boxes(grid[t["cell"], 1:5]), t["boxes"], reduction="mean")
            total = total + F.cross_entropy(grid[t["cell"], 5:], t["labels"])
        return total / len(targets)

    def one(count: int) -> dict[str, Tensor]:
        corner = torch.rand(count, 2) * 0.5
        return {
            "cell": torch.randperm(16)[:count],
            "boxes": torch.cat([corner, corner + 0.3], 1),
            "labels": classes(3, count),
        }

    data = [(torch.randn(len(counts), 3, 16, 16), [one(c) for c in counts]) for counts in ((2, 1, 3), (1, 2))]
    model = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.SiLU(), nn.Conv2d(8, 8, 3, 2, 1), nn.SiLU(), nn.Conv2d(8, 8, 1))
    return Example(model, loss, data, weight=lambda b: len(b[1]))


@detection.case()
def set_prediction() -> Example:
    """DETR-like queries with Hungarian matching in the loss."""

    def forward(self: Any, x: Tensor) -> Any:
        z = self.c(x).flatten(2).transpose(1, 2)
        q = self.q.expand(len(x), -1, -1)
        q = q + self.a(q, z, z, need_weights=False)[0]
        return self.k(q), _boxes(self.b(q))

    def loss(o: Any, targets: list[dict[str, Tensor]]) -> Tensor:
        total = 0
        for logits, boxes, t in zip(*o, targets, strict=True):
            cost = torch.cdist(boxes, t["boxes"], p=1) - logits.softmax(-1)[:, t["labels"]]
            i, j = map(torch.as_tensor, linear_sum_assignment(cost.detach().numpy()))
            label = torch.full((len(logits),), 3)
            label[i] = t["labels"][j]
            total = total + F.cross_entropy(logits, label) + (boxes[i] - t["boxes"][j]).square().sum(1).mean()
        return total / len(targets)

    def one(count: int) -> dict[str, Tensor]:
        corner = torch.rand(count, 2) * 0.5
        return {"boxes": torch.cat([corner, corner + 0.3], 1), "labels": classes(3, count)}

    model = Forward(
        forward,
        c=nn.Conv2d(3, 8, 4, 4),
        a=nn.MultiheadAttention(8, 2, batch_first=True),
        k=nn.Linear(8, 4),
        b=nn.Linear(8, 4),
    )
    model.q = nn.Parameter(torch.randn(1, 4, 8))
    data = [(torch.randn(len(counts), 3, 12, 12), [one(c) for c in counts]) for counts in ((2, 1), (3,))]
    return Example(model, loss, data, weight=lambda b: len(b[1]))


@detection.case()
def heatmaps() -> Example:
    """CenterNet: focal loss of heatmaps, offsets at peaks."""

    def loss(o: Tensor, t: Any) -> Tensor:
        heat, place, offset = t
        p = o[:, 0].sigmoid().clamp(1e-4, 1 - 1e-4)
        good, bad = (heat == 1).to(p), (heat < 1).to(p)
        focal = good * (1 - p) ** 2 * p.log() + bad * (1 - heat) ** 4 * p**2 * (1 - p).log()
        found = o[:, 1:].flatten(2).gather(2, place[:, None, None].expand(-1, 2, -1))[..., 0]
        return -focal.sum() / good.sum() + F.smooth_l1_loss(found, offset)

    data = []
    for n in (3, 2):
        heat, place = torch.rand(n, 6, 6) * 0.8, classes(36, n)
        heat.view(n, -1)[torch.arange(n), place] = 1
        data.append((torch.randn(n, 3, 12, 12), (heat, place, torch.rand(n, 2))))
    model = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.GELU(), nn.Conv2d(8, 3, 1))
    return Example(model, loss, data)


@detection.case()
def key_points() -> Example:
    """Key points by soft-argmax (integral regression)."""

    def forward(self: Any, x: Tensor) -> Tensor:
        chance = self.c(x).flatten(2).softmax(-1).view(len(x), 4, *x.shape[2:])
        at = torch.linspace(0, 1, x.shape[-1]).to(x)
        return torch.stack([(chance.sum(2) * at).sum(-1), (chance.sum(3) * at).sum(-1)], -1)

    model = Forward(forward, c=nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 4, 3, padding=1)))
    wing = lambda o, y: torch.log1p((o - y).abs() / 0.1).mean()
    return Example(model, wing, [(torch.randn(n, 3, 9, 9), torch.rand(n, 4, 2)) for n in (3, 2)])


# ------------------------------------------------------------------ segmentation
def _masks(count: int, side: int, *sizes: int, ignored: int | None = None) -> list[Any]:
    data = []
    for i, n in enumerate(sizes or (2, 1)):
        y = classes(count, n, side, side)
        if ignored is not None:
            y[torch.rand(y.shape) < (0.1, 0.7)[i]] = ignored
        data.append((torch.randn(n, 3, side, side), y))
    return data


class _UNet(nn.Module):
    def __init__(self, out: int, norm: Any) -> None:
        super().__init__()
        block = lambda i, o: nn.Sequential(nn.Conv2d(i, o, 3, padding=1), norm(o), nn.SiLU())
        self.a, self.b, self.c, self.h = block(3, 6), block(6, 12), block(18, 6), nn.Conv2d(6, out, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = self.a(x)
        up = F.interpolate(self.b(F.max_pool2d(a, 2)), scale_factor=2, mode="bilinear", align_corners=False)
        return self.h(self.c(torch.cat([a, up], 1)))


@segmentation.case()
def u_net() -> Example:
    """U-Net, cross-entropy of pixels."""
    return Example(_UNet(4, lambda o: nn.GroupNorm(2, o)), nn.CrossEntropyLoss(), _masks(4, 12))


@segmentation.case()
def u_net_ignored() -> Example:
    """U-Net with batch norm, ignored pixels in a lambda."""
    loss = lambda o, y: F.cross_entropy(o, y, ignore_index=255)
    return Example(_UNet(4, nn.BatchNorm2d), loss, _masks(4, 12, ignored=255), weight=lambda b: (b[1] != 255).sum())


@segmentation.case()
def dice_of_samples() -> Example:
    """Dice loss, a mean over samples."""

    def loss(o: Tensor, y: Tensor) -> Tensor:
        p = o.sigmoid()
        return (1 - (2 * (p * y).sum((1, 2, 3)) + 1) / (p.sum((1, 2, 3)) + y.sum((1, 2, 3)) + 1)).mean()

    return Example(
        _UNet(1, nn.InstanceNorm2d),
        loss,
        [(torch.randn(n, 3, 12, 12), torch.rand(n, 1, 12, 12).round()) for n in (2, 1)],
    )


@segmentation.case()
def dice_of_batch() -> Example:
    """Dice loss over a whole batch, one batch."""

    def loss(o: Tensor, y: Tensor) -> Tensor:
        p = o.sigmoid()
        return 1 - (2 * (p * y).sum() + 1) / (p.sum() + y.sum() + 1)

    return Example(_UNet(1, nn.InstanceNorm2d), loss, [(torch.randn(3, 3, 12, 12), torch.rand(3, 1, 12, 12).round())])


@segmentation.case()
def lovasz() -> Example:
    """Lovász hinge by sorting, and a boundary loss."""

    def loss(o: Tensor, y: Tensor) -> Tensor:
        error = (1 - o.flatten() * (2 * y.flatten() - 1)).clamp_min(-1)
        error, order = error.sort(descending=True)
        truth = y.flatten()[order]
        union = truth.sum() + (1 - truth).cumsum(0)
        jaccard = 1 - (truth.sum() - truth.cumsum(0)) / union
        step = jaccard.diff(prepend=jaccard.new_zeros(1))
        return (F.elu(error) + 1) @ step

    return Example(_UNet(1, nn.InstanceNorm2d), loss, [(torch.randn(2, 3, 8, 8), torch.rand(2, 1, 8, 8).round())])


@segmentation.case()
def fully_convolutional() -> Example:
    """FCN of torchvision with an auxiliary head, dictionary outputs."""
    make = zoo_of_segmentation.fcn.FCN
    head = zoo_of_segmentation.fcn.FCNHead
    backbone = IntermediateLayerGetter(
        nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1)), {"1": "aux", "2": "out"}
    )
    loss = lambda o, y: F.cross_entropy(o["out"], y) + 0.4 * F.cross_entropy(o["aux"], y)
    return Example(make(backbone, head(8, 4), head(8, 4)), loss, _masks(4, 16))


@segmentation.case()
def atrous() -> Example:
    """DeepLab v3's atrous spatial pyramid."""
    narrow = zoo_of_segmentation.deeplabv3.ASPP(8, [2, 3], out_channels=8)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1), narrow, nn.Conv2d(8, 4, 1), nn.Upsample(scale_factor=2, mode="bilinear")
    )
    return Example(model, nn.CrossEntropyLoss(), _masks(4, 16))


@segmentation.case()
def mobile_segmentation() -> Example:
    """LR-ASPP head of torchvision, dictionary outputs."""
    low, high = nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1), nn.Hardswish()), nn.Conv2d(6, 8, 3, 2, 1)

    def forward(self: Any, x: Tensor) -> dict[str, Tensor]:
        x = self.low(x)
        return {"low": x, "high": self.high(x)}

    backbone = Forward(forward, low=low, high=high)
    model = zoo_of_segmentation.lraspp.LRASPP(backbone, 6, 8, 4, inter_channels=8)
    return Example(model, lambda o, y: F.cross_entropy(o["out"], y), _masks(4, 16))


@segmentation.case()
def optical_flow() -> Example:
    """Optical flow: correlation, warping by grid_sample, smoothness."""

    def forward(self: Any, x: Tensor, y: Tensor) -> Any:
        flow = 0.1 * torch.tanh(self.f(torch.cat([x, y], 1))).permute(0, 2, 3, 1)
        base = F.affine_grid(torch.eye(2, 3).to(x).expand(len(x), -1, -1), x.shape, align_corners=False)
        return F.grid_sample(y, base + flow, align_corners=False, padding_mode="border"), flow

    def loss(o: Any, x: Tensor) -> Tensor:
        smooth = o[1].diff(dim=1).square().mean() + o[1].diff(dim=2).square().mean()
        return ((o[0] - x) ** 2 + 1e-3).sqrt().mean() + 0.1 * smooth

    data = [((x, torch.rand(len(x), 3, 9, 9)), x) for x in (torch.rand(n, 3, 9, 9) for n in (2, 1))]
    return Example(Forward(forward, f=nn.Conv2d(6, 2, 3, padding=1)), loss, data)
