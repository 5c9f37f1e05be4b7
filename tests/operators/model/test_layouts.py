"""Normalisation has right gradients, whatever the memory layouts of what it is given."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from cases import seeded
from torch import nn

import hesspec
from hesspec.operators.model.layouts import IN_ANY_LAYOUT
from hesspec.operators.model.substitutes import Substitutes

CHANNELS = 4


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


MEAN, VARIANCE, WEIGHT, BIAS = (
    random(CHANNELS),
    random(CHANNELS).exp(),
    random(CHANNELS, seed=1),
    random(CHANNELS, seed=2),
)
NORMALISATIONS = {
    "evaluation": lambda x: F.batch_norm(x, MEAN, VARIANCE, WEIGHT, BIAS),
    "without affine": lambda x: F.batch_norm(x, MEAN, VARIANCE),
    "training": lambda x: F.batch_norm(x, None, None, WEIGHT, BIAS, training=True),
    "torch": lambda x: torch.batch_norm(x, WEIGHT, BIAS, MEAN, VARIANCE, False, 0.1, 1e-5, False),
    "instance": lambda x: F.instance_norm(x, None, None, WEIGHT, BIAS),
}


def laid_out(tensor, order):
    """The same tensor with its dimensions in this order in memory; that of size one has the stride of a permutation."""
    inverse = [order.index(i) for i in range(tensor.dim())]
    return tensor.permute(order).contiguous().permute(inverse)


@pytest.mark.parametrize(
    "shape", [(1, 4, 2, 3), (2, 4, 2, 3), (1, 4, 1, 6), (1, 4, 5), (2, 4, 5), (1, 4, 2, 2, 2)], ids=str
)
@pytest.mark.parametrize("name", NORMALISATIONS)
def test_gradients_and_tangents_are_those_of_row_major_tensors(name, shape):
    function, x, cotangent = NORMALISATIONS[name], random(*shape), random(*shape, seed=1)
    value, pull = torch.func.vjp(function, x)
    (expected,) = pull(cotangent)
    order = tuple(range(len(shape)))
    # Row-major, channels last, the same with the samples next to the channels, and column-major.
    orders = [order, (0, *order[2:], 1), (*order[2:], 0, 1), order[::-1]]
    with Substitutes(IN_ANY_LAYOUT):
        for of_input, of_cotangent in itertools.product(orders, orders):
            leaf = laid_out(x, of_input).requires_grad_()
            found = function(leaf)
            torch.testing.assert_close(found, value, rtol=1e-12, atol=1e-12)
            (gradient,) = torch.autograd.grad(found, leaf, laid_out(cotangent, of_cotangent))
            torch.testing.assert_close(gradient, expected, rtol=1e-12, atol=1e-12)


class Tokens(nn.Module):
    """A convolution and its normalisation, whose pixels become tokens, so that gradients come as channels last."""

    def __init__(self, norm):
        super().__init__()
        self.first = nn.Conv2d(1, CHANNELS, 3, stride=2, padding=1, bias=False)
        self.second = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, bias=False)
        self.norm, self.head = norm, nn.Linear(CHANNELS, 3)

    def forward(self, x):
        x = torch.tanh(self.norm(self.second(torch.tanh(self.first(x)))))
        tokens = x.flatten(2).transpose(1, 2)
        return self.head(tokens + 0.5 * tokens.softmax(1).mean(1, keepdim=True)).mean(1)


@pytest.mark.parametrize("kind", ["batch", "instance"])
@pytest.mark.parametrize("samples", [(1,), (3, 1)], ids=str)
@pytest.mark.parametrize("mode", ["traced", "double backward", "double backward in place", "differences"])
@pytest.mark.few(6)
def test_one_sample_that_becomes_tokens(kind, samples, mode):
    norm = nn.BatchNorm2d(CHANNELS) if kind == "batch" else nn.InstanceNorm2d(CHANNELS, affine=True)
    model = seeded(lambda: Tokens(norm)).double().eval()
    data = [(random(n, 1, 4, 4, seed=n), torch.arange(n) % 3) for n in samples]
    parameters = tuple(model.parameters())
    sizes = [p.numel() for p in parameters]

    def loss(theta):
        """The loss at a point, written with elementary operations: a truth in which no kernel normalises."""
        views = [part.view(p.shape) for part, p in zip(theta.split(sizes), parameters, strict=True)]
        named = dict(zip(dict(model.named_parameters()), views, strict=True))
        total = 0.0
        for inputs, y in data:
            pixels = torch.tanh(F.conv2d(inputs, named["first.weight"], stride=2, padding=1))
            pixels = F.conv2d(pixels, named["second.weight"], padding=1)
            batch = kind == "batch"
            mean = norm.running_mean[None] if batch else pixels.mean((2, 3))
            variance = norm.running_var[None] if batch else pixels.var((2, 3), correction=0)
            pixels = (pixels - mean[..., None, None]) / (variance[..., None, None] + 1e-5).sqrt()
            pixels = torch.tanh(pixels * named["norm.weight"][:, None, None] + named["norm.bias"][:, None, None])
            tokens = pixels.flatten(2).transpose(1, 2)
            tokens = tokens + 0.5 * tokens.softmax(1).mean(1, keepdim=True)
            logits = (tokens @ named["head.weight"].T + named["head.bias"]).mean(1)
            total = total + F.cross_entropy(logits, y, reduction="sum")
        return total / sum(samples)

    theta = torch.cat([p.detach().flatten() for p in parameters]).requires_grad_()
    directions = random(len(theta), 3, seed=9)
    (gradient,) = torch.autograd.grad(loss(theta), theta, create_graph=True)
    expected = [torch.autograd.grad(gradient @ v, theta, retain_graph=True)[0] for v in directions.T]
    expected = torch.stack(expected, dim=1)
    found = hesspec.Hessian(model, nn.CrossEntropyLoss(), data, mode=mode) @ directions
    accuracy = 1e-6 if mode == "differences" else 1e-12
    assert torch.linalg.norm(found - expected) <= accuracy * torch.linalg.norm(expected)
