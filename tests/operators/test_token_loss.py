"""Token losses: terms, label smoothing, z-loss and its closed-form curvature, large vocabularies in chunks."""

import pytest
import torch
from torch import nn
from torch.func import functional_call, jacrev, vjp

import hesspec
from hesspec.operators.risk import output_curvature as curvatures
from hesspec.study import GPT

V, L = 7, 4


@pytest.fixture(scope="module")
def problem():
    """A GPT with weights of size 1, and sequences of which some targets are ignored, in batches of unequal terms."""
    torch.manual_seed(0)
    network = GPT(V, L, layers=1, heads=2, width=4).double().eval()
    for parameter in network.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    tokens, targets = torch.randint(0, V, (5, L)), torch.randint(0, V, (5, L))
    targets[0, :3] = -100
    return network, tokens, targets


def hessian(function, point):
    """Row by row by double backward: jacrev of jacrev is wrong here, by its batched second derivatives (torch 2.14)."""
    leaf = point.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(function(leaf), leaf, create_graph=True)
    rows = [torch.autograd.grad(entry, leaf, retain_graph=True)[0].reshape(-1) for entry in gradient.reshape(-1)]
    return torch.stack(rows)


def functions(network, tokens):
    names, values = zip(*network.named_parameters(), strict=True)
    flat = torch.cat([value.detach().reshape(-1) for value in values])
    sizes = [value.numel() for value in values]

    def logits(theta):
        parts = [part.view_as(value) for part, value in zip(torch.split(theta, sizes), values, strict=True)]
        return functional_call(network, dict(zip(names, parts, strict=True)), (tokens,))

    return logits, flat


def written_out(logits, targets, z, smoothing):
    """The formula, over the tokens that count."""
    counted = targets.flatten() != -100
    rows, true = logits.transpose(1, 2).reshape(-1, V)[counted], targets.flatten()[counted]
    log_z = torch.logsumexp(rows, 1)
    own = rows.gather(1, true[:, None]).squeeze(1)
    return ((1 - smoothing) * (log_z - own) + smoothing * (log_z - rows.mean(1)) + z * log_z**2).mean()


@pytest.mark.parametrize(("z", "smoothing"), [(0.0, 0.0), (0.3, 0.0), (0.05, 0.1)])
def test_hessian_and_gauss_newton_are_those_of_the_formula(problem, z, smoothing):
    network, tokens, targets = problem
    logits, theta = functions(network, tokens)
    loss = hesspec.TokenLoss(z_loss=z, label_smoothing=smoothing)
    assert loss(logits(theta), targets).item() == pytest.approx(
        written_out(logits(theta), targets, z, smoothing).item(), rel=1e-13
    )
    # 1 and 16 counted tokens: a mean of the batches' means would be wrong.
    data = [(tokens[:1], targets[:1]), (tokens[1:], targets[1:])]
    jacobian = jacrev(logits)(theta).reshape(-1, len(theta))
    outputs = logits(theta).detach()
    inner = hessian(lambda f: written_out(f, targets, z, smoothing), outputs)
    dense = {
        hesspec.GaussNewton: jacobian.T @ inner @ jacobian,
        hesspec.Hessian: hessian(lambda t: written_out(logits(t), targets, z, smoothing), theta),
    }
    for matrix, truth in dense.items():
        operator = matrix(network, loss, data)
        product = operator @ torch.eye(len(theta), dtype=torch.float64)
        assert operator.attributes["terms"] == 17
        assert (product - truth).abs().max() <= 1e-12 * truth.abs().max()


@pytest.mark.parametrize("shape", [(V,), (6, V), (3, V, L)])
def test_the_closed_form_is_the_second_derivative_of_the_loss(shape):
    torch.manual_seed(1)
    outputs = torch.randn(shape, dtype=torch.float64)
    targets = torch.randint(0, V, shape[:1] + shape[2:] if len(shape) > 1 else ())
    loss = hesspec.TokenLoss(z_loss=0.2, label_smoothing=0.1)
    tangent = torch.randn(shape, dtype=torch.float64)
    truth = vjp(torch.func.grad(lambda f: loss(f, targets)), outputs)[1](tangent)[0]
    found = curvatures.output_curvature(loss, outputs, targets)(tangent)
    assert (found - truth).abs().max() <= 1e-14


def test_a_sum_is_not_divided():
    logits, targets = torch.randn(2, V, L), torch.randint(0, V, (2, L))
    mean, total = (hesspec.TokenLoss(z_loss=0.1, reduction=how)(logits, targets) for how in ("mean", "sum"))
    assert total.item() == pytest.approx(2 * L * mean.item(), rel=1e-6)


@pytest.mark.parametrize("value", [-1e-4, float("nan"), float("inf")])
def test_a_negative_factor_is_refused(value):
    with pytest.raises(ValueError, match="z_loss is .*; it must be at least 0"):
        hesspec.TokenLoss(z_loss=value)


@pytest.mark.parametrize("loss", [nn.CrossEntropyLoss(), hesspec.TokenLoss(z_loss=1e-4)])
def test_temporaries_of_a_large_vocabulary_are_bounded(loss, monkeypatch):
    """50,257 tokens: no temporary of a product has more entries than a chunk, or than one sequence."""
    vocabulary, count, length = 50_257, 6, 4
    torch.manual_seed(2)
    outputs, targets = torch.randn(count, vocabulary, length), torch.randint(0, vocabulary, (count, length))
    tangent = torch.randn_like(outputs)
    whole = curvatures.output_curvature(loss, outputs, targets)(tangent)
    chunk = 2 * vocabulary * length
    monkeypatch.setattr(curvatures, "CHUNK", chunk)
    curve = curvatures.output_curvature(loss, outputs, targets)
    largest = 0

    class Sizes(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            nonlocal largest
            found = function(*args, **(kwargs or {}))
            if isinstance(found, torch.Tensor) and function is not torch.cat:
                largest = max(largest, found.numel())
            return found

    with Sizes():
        found = curve(tangent)
    assert 0 < largest <= chunk
    assert torch.equal(found, whole)
