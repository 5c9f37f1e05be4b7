"""Elementwise operations move to the other side of max-pooling, and products stay what they are."""

import pytest
import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.func import functional_call, functionalize

from hesspec.operators.engine.graph.pooling import pool_first
from hesspec.operators.engine.graph.quiet import quiet_tracer
from hesspec.operators.engine.graph.recording import record

aten = torch.ops.aten


class Pooled(nn.Module):
    """Convolution, something elementwise, max-pooling with these settings, convolution."""

    def __init__(self, between, **pool):
        super().__init__()
        self.first, self.between, self.pool = nn.Conv2d(2, 3, 3, padding=1), between, nn.MaxPool2d(**pool)
        self.second, self.head = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4, 3)

    def forward(self, x):
        """Logits."""
        return self.head(self.second(self.pool(self.between(self.first(x)))).relu().mean((2, 3)))


class TwoReaders(Pooled):
    """The maps before pooling are read a second time, and pooled once more."""

    def forward(self, x):
        maps = self.between(self.first(x))
        other = F.max_pool2d(maps, 4).sum((2, 3))
        return self.head(self.second(self.pool(maps) + F.avg_pool2d(maps, 2)).relu().mean((2, 3))) + other


class Scaled(nn.Module):
    """Factors of channels, of pixels, and of all entries."""

    def __init__(self):
        super().__init__()
        self.channels, self.pixels = nn.Parameter(torch.rand(3, 1, 1)), nn.Parameter(torch.rand(8, 8))
        self.slope = nn.Parameter(torch.tensor(0.7))

    def forward(self, x):
        """Of the same shape."""
        return self.slope * torch.relu(x * self.channels) / (1 + self.pixels) - x


def normalised():
    """Batch norm with statistics of some training."""
    layer = nn.BatchNorm2d(3)
    layer.running_mean.uniform_(-0.5, 0.5)
    layer.running_var.uniform_(0.5, 1.5)
    with torch.no_grad():
        layer.weight.uniform_(0.5, 1.5)
        layer.bias.uniform_(-0.5, 0.5)
    return nn.Sequential(layer, nn.ReLU())


NETWORKS = {
    "batch norm": lambda: Pooled(normalised(), kernel_size=2),
    "batch norm without weights": lambda: Pooled(nn.BatchNorm2d(3, affine=False), kernel_size=2),
    "windows that overlap": lambda: Pooled(normalised(), kernel_size=3, stride=2),
    "padding, a last window that is cut": lambda: Pooled(
        normalised(), kernel_size=3, stride=3, padding=1, ceil_mode=True
    ),
    "dilation": lambda: Pooled(normalised(), kernel_size=2, dilation=2, stride=2),
    "leaky": lambda: Pooled(nn.LeakyReLU(0.1), kernel_size=2),
    "smooth": lambda: Pooled(nn.Softplus(), kernel_size=2),
    "factors of all shapes": lambda: Pooled(Scaled(), kernel_size=2),
    "maps that shrink little": lambda: Pooled(normalised(), kernel_size=2, stride=1),
    "two readers": lambda: TwoReaders(normalised(), kernel_size=2),
}


def trace(function, *inputs):
    """Graph of a function, as an operator records it, in a module that runs it."""
    with quiet_tracer(), torch.enable_grad():
        graph = record(functionalize(function, remove="mutations"), inputs)
    graph.eliminate_dead_code()
    return fx.GraphModule(graph.owning_module, graph)


@pytest.mark.parametrize("network", NETWORKS)
def test_products_stay_what_they_are(network):
    torch.manual_seed(0)
    model = NETWORKS[network]().double().eval()
    x, y = torch.randn(5, 2, 8, 8, dtype=torch.float64), torch.randint(3, (5,))
    theta = {name: value.detach() for name, value in model.named_parameters()}

    def product(*tangents):
        named = dict(zip(theta, tangents, strict=True))
        logits, push = torch.func.jvp(lambda t: functional_call(model, t, (x,)), (theta,), (named,))
        newton = torch.func.vjp(lambda t: functional_call(model, t, (x,)), theta)[1](logits.sin() * push)[0]
        slope = torch.func.grad(lambda t: F.cross_entropy(functional_call(model, t, (x,)), y))
        return *newton.values(), *torch.func.jvp(slope, (theta,), (named,))[1].values()

    tangents = [torch.randn_like(value) for value in theta.values()]
    traced = trace(product, *tangents)
    expected = traced(*tangents)
    pool_first(traced.graph)
    traced.graph.lint()
    traced.recompile()
    for found, before in zip(traced(*tangents), expected, strict=True):
        torch.testing.assert_close(found, before, rtol=1e-12, atol=1e-14)


def entries(graph, *skipped):
    """Numbers of entries that elementwise operations and batch norm write."""
    counted = {aten.add.Tensor, aten.mul.Tensor, aten.sub.Tensor, aten.threshold_backward.default} - {*skipped}
    return [node.meta["val"].numel() for node in graph.nodes if node.target in counted]


def products(x, slope, g):
    """What tangent and gradient of batch norm, ReLU and pooling consist of."""
    pooled, indices = aten.max_pool2d_with_indices(torch.relu(x), [2, 2])
    tangent = aten.threshold_backward(slope * x, torch.relu(x), 0).view(*x.shape[:2], -1)
    gathered = tangent.gather(2, indices.view(*indices.shape[:2], -1)).view(indices.shape)
    scattered = aten.max_pool2d_with_indices_backward(g, x, [2, 2], [2, 2], [0, 0], [1, 1], False, indices)
    masked = aten.threshold_backward(scattered, torch.relu(x), 0)
    return (
        gathered * pooled,
        (masked * x).sum((0, 2, 3)),
        masked.sum(),
        F.conv2d(slope * masked, torch.ones(1, 3, 2, 2)),
    )


def test_what_is_elementwise_is_computed_at_the_maxima_alone():
    torch.manual_seed(0)
    inputs = torch.randn(2, 3, 8, 8), torch.rand(1, 3, 1, 1), torch.randn(2, 3, 4, 4)
    traced = trace(products, *inputs)
    before = entries(traced.graph)
    pool_first(traced.graph)
    traced.recompile()
    assert max(before) == 384
    assert max(entries(traced.graph)) == 96
    for found, expected in zip(traced(*inputs), products(*inputs), strict=True):
        torch.testing.assert_close(found, expected)
