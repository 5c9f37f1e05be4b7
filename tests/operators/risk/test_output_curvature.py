"""Closed-form curvature in the outputs, against automatic differentiation in float64."""

import pytest
import torch
from cases import NextTokenLoss, mlp
from torch import nn

import hesspec
from hesspec.operators.risk import output_curvature as module
from hesspec.operators.risk.empirical_risk import OutputLoss
from hesspec.operators.risk.output_curvature import output_curvature

WEIGHT = torch.tensor([0.2, 1.0, 3.0, 0.7], dtype=torch.float64)
SHAPES = [(4,), (6, 4), (3, 4, 5), (2, 4, 3, 2)]
OPTIONS = [
    {},
    {"weight": WEIGHT},
    {"ignore_index": 1},
    {"weight": WEIGHT, "ignore_index": 2},
    {"reduction": "sum"},
    {"weight": WEIGHT, "reduction": "sum"},
    {"label_smoothing": 0.1},
    {"label_smoothing": 0.3, "ignore_index": 0},
    {"label_smoothing": 0.2, "weight": WEIGHT},
    {"label_smoothing": 0.2, "weight": WEIGHT, "ignore_index": 3},
    {"label_smoothing": 0.2, "weight": WEIGHT, "reduction": "sum"},
]


def by_autograd(loss, outputs, targets, tangent):
    """(d^2 l / d f^2) tangent by reverse over reverse."""
    f = outputs.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(f, targets), f, create_graph=True)
    return torch.autograd.grad(gradient, f, tangent)[0]


def check(loss, outputs, targets):
    tangent = torch.randn_like(outputs)
    expected = by_autograd(loss, outputs, targets, tangent)
    found = output_curvature(loss, outputs, targets)(tangent)
    assert found.shape == outputs.shape
    assert (found - expected).abs().max() <= 1e-12 * expected.abs().max()


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("shape", SHAPES)
def test_cross_entropy_of_class_indices(shape, options):
    outputs = 3 * torch.randn(shape, dtype=torch.float64)
    targets = torch.randint(4, (shape[0], *shape[2:]) if len(shape) > 1 else ())
    if len(shape) == 1:
        targets = targets.fill_(options.get("ignore_index", 1) % 3 + 1)
    check(nn.CrossEntropyLoss(**options), outputs, targets)


@pytest.mark.parametrize("options", [option for option in OPTIONS if "ignore_index" not in option])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("scale", [1.0, "of one"])
def test_cross_entropy_of_class_probabilities(shape, options, scale):
    targets = torch.rand(shape, dtype=torch.float64)  # they need not sum to one
    if scale == "of one":
        targets = targets / targets.sum(1 if len(shape) > 1 else 0, keepdim=True)
    check(nn.CrossEntropyLoss(**options), 3 * torch.randn(shape, dtype=torch.float64), targets)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_squared_error(shape, reduction):
    check(
        nn.MSELoss(reduction=reduction),
        torch.randn(shape, dtype=torch.float64),
        torch.randn(shape, dtype=torch.float64),
    )


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"reduction": "sum"},
        {"pos_weight": WEIGHT},
        {"weight": WEIGHT},
        {"weight": WEIGHT, "pos_weight": WEIGHT.flip(0), "reduction": "sum"},
    ],
)
def test_binary_cross_entropy_with_logits(options):
    check(
        nn.BCEWithLogitsLoss(**options),
        5 * torch.randn(6, 4, dtype=torch.float64),
        torch.rand(6, 4, dtype=torch.float64),
    )


@pytest.mark.parametrize("target", [0, 1], ids=["fitted", "misfitted"])
@pytest.mark.parametrize("offset", [0.0, 1e3])
def test_float32_keeps_its_digits_where_a_probability_is_near_one(target, offset):
    # 1 - p_0 = 1e-6; a tangent with an offset that all classes share, which the curvature takes out.
    logits = torch.tensor([[13.8155 + 1.0986, 0.0, 0.5, -0.7]])
    tangent = torch.tensor([[0.3, -1.2, 0.8, 2.0]]) + offset
    targets = torch.tensor([target])
    found = output_curvature(nn.CrossEntropyLoss(), logits, targets)(tangent)
    p = torch.softmax(logits.double(), 1)
    assert 1e-7 < 1 - float(p.max()) < 5e-6
    u = tangent.double() - tangent.double()[:, :1]
    exact = p * (u - (p * u).sum(1, keepdim=True))
    exact[:, 0] = -p[:, 0] * (p * u).sum(1)
    # Entry by entry, and the smallest is 1e-7 of 1: rounding of logits of size 15 is all that enters.
    assert ((found.double() - exact).abs() <= 3e-6 * exact.abs()).all()


@pytest.mark.parametrize("shape", [(7, 4), (7, 4, 3)])
@pytest.mark.parametrize("samples", [1, 2, 3, 6, 7, 8])
def test_chunks_of_rows_change_nothing(shape, samples, monkeypatch):
    outputs = torch.randn(shape, dtype=torch.float64)
    targets = torch.randint(4, (7, *shape[2:]))
    tangent = torch.randn_like(outputs)
    loss = nn.CrossEntropyLoss(weight=WEIGHT, ignore_index=0)
    whole = output_curvature(loss, outputs, targets)(tangent)
    monkeypatch.setattr(module, "CHUNK", samples * outputs[0].numel())
    assert torch.equal(output_curvature(loss, outputs, targets)(tangent), whole)


@pytest.mark.parametrize("size", [1, 8, 100])
def test_gauss_newton_in_chunks(size, mode, monkeypatch):
    x, y = torch.randn(5, 5, dtype=torch.float64), torch.randint(4, (5,))
    v = torch.randn(64, dtype=torch.float64)
    whole = hesspec.GaussNewton(mlp().double(), nn.CrossEntropyLoss(), [(x, y)]) @ v
    monkeypatch.setattr(module, "CHUNK", size)
    found = hesspec.GaussNewton(mlp().double(), nn.CrossEntropyLoss(), [(x, y)]) @ v
    torch.testing.assert_close(found, whole, rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize(
    ("loss", "targets"),
    [
        (nn.L1Loss(), torch.ones(3, 4)),
        (nn.MSELoss(), torch.ones(4)),
        (NextTokenLoss(), torch.ones(3, 4, dtype=torch.long)),
        (lambda outputs, targets: outputs.sum(), torch.ones(3, 4)),
        (nn.CrossEntropyLoss(), None),
    ],
    ids=["another loss", "broadcast targets", "own forward", "function", "no tensor"],
)
def test_other_losses_are_left_to_automatic_differentiation(loss, targets):
    assert output_curvature(loss, torch.ones(3, 4), targets) is None


def test_outputs_that_the_loss_does_not_read_have_no_curvature():
    class Loss:
        function = nn.MSELoss()

        def taken(self, outputs):
            return outputs["a"]

    outputs = {"a": torch.ones(3), "b": torch.ones(2)}
    curved = OutputLoss(Loss(), torch.zeros(3)).curvature(outputs)((torch.ones(3), torch.ones(2)))
    torch.testing.assert_close(curved, (torch.full((3,), 2 / 3), torch.zeros(2)))
