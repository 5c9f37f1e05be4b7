"""The margin form of cross-entropy: the same function, with derivatives that do not cancel."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import hesspec
from hesspec.operators.model.substitutes import Substitutes, cross_entropy

OPTIONS = [
    {},
    {"weight": torch.tensor([0.5, 2.0, 1.0, 0.1], dtype=torch.float64)},
    {"ignore_index": 2},
    {"reduction": "sum"},
    {"reduction": "none"},
]


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("shape", [(6, 4), (3, 4, 5), (2, 4, 3, 3)])
def test_it_is_cross_entropy(options, shape):
    logits = 5 * torch.randn(shape, dtype=torch.float64)
    targets = torch.randint(4, (shape[0], *shape[2:]))
    torch.testing.assert_close(cross_entropy(logits, targets, **options), F.cross_entropy(logits, targets, **options))


def test_a_single_sample_without_batch_dimension():
    logits, target = torch.randn(4, dtype=torch.float64), torch.tensor(2)
    torch.testing.assert_close(cross_entropy(logits, target), F.cross_entropy(logits, target))


@pytest.mark.parametrize("gap", [-700.0, -50.0, -5.0, 0.0, 5.0, 50.0, 700.0])
def test_it_neither_overflows_nor_loses_small_losses(gap):
    logits = torch.tensor([[gap, 0.0]], dtype=torch.float64, requires_grad=True)
    loss = cross_entropy(logits, torch.tensor([0]))
    (gradient,) = torch.autograd.grad(loss, logits)
    # log(1 + exp(-gap)) and -1/(1 + exp(gap)), without overflow.
    assert float(loss.detach()) == pytest.approx(float(torch.logaddexp(torch.zeros(()), torch.tensor(-gap))), rel=1e-6)
    assert float(gradient[0, 0]) == pytest.approx(
        -float(torch.sigmoid(torch.tensor(-gap, dtype=torch.float64))), rel=1e-12
    )


@pytest.mark.parametrize("confidence", [5.0, 10.0, 14.0])
def test_float32_curvature_of_a_well_fitted_sample_keeps_its_digits(confidence):
    logits = torch.tensor([[confidence, 0.3, -0.2]])
    target = torch.tensor([0])

    def curvature(x):
        return torch.autograd.functional.hessian(lambda f: cross_entropy(f, target), x)

    exact = torch.autograd.functional.hessian(lambda f: F.cross_entropy(f, target), logits.double())
    # A few roundings of eps = 1.2e-7, however small 1 - p_y is; the plain form is off by eps / (1 - p_y).
    assert (curvature(logits).double() - exact).abs().max() <= 2e-6 * exact.abs().max()


def test_calls_inside_the_users_own_loss_are_replaced_within_the_context_only():
    logits, targets = torch.tensor([[30.0, 0.0]]), torch.tensor([0])
    with Substitutes():
        inside = F.cross_entropy(logits, targets)
    assert float(inside) == pytest.approx(9.357623e-14, rel=1e-6)
    assert float(F.cross_entropy(logits, targets)) == 0


@pytest.mark.parametrize("matrix", ["Hessian", "GaussNewton", "Residual"])
def test_float32_products_of_a_fitted_network_are_accurate(matrix):
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
    x = torch.randn(32, 4)
    with torch.no_grad():
        model[2].weight.mul_(40)
        targets = model(x).argmax(1)
    products = {}
    for dtype in (torch.float32, torch.float64):
        operator = getattr(hesspec, matrix)(model.to(dtype), nn.CrossEntropyLoss(), [(x, targets)])
        v = torch.linspace(-1, 1, operator.shape[0], dtype=dtype)
        products[dtype] = (operator @ v).double()
    error = (products[torch.float32] - products[torch.float64]).norm() / products[torch.float64].norm()
    # Logits of size 20 are rounded to 20 eps = 2e-6, which is the relative error of every probability.
    assert error < 1e-5


def of_logits(logits, weights, target):
    return (cross_entropy(logits, target, reduction="none", ignore_index=3) * weights).sum()


@pytest.mark.parametrize("shape", [(5, 4), (4,), (2, 4, 3)])
def test_its_derivatives_of_reverse_mode_are_those_of_cross_entropy(shape):
    logits = (4 * torch.randn(shape, dtype=torch.float64)).requires_grad_()
    target = torch.randint(4, (shape[0], *shape[2:]) if len(shape) > 1 else ())
    # Factors of the losses that are differentiated too, as in a focal loss.
    weights = torch.rand(target.shape, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda f, w: of_logits(f, w, target), (logits, weights))
    assert torch.autograd.gradgradcheck(lambda f, w: of_logits(f, w, target), (logits, weights))

    def plain(logits, weights):
        return (F.cross_entropy(logits, target, reduction="none", ignore_index=3) * weights).sum()

    along = torch.randn(shape, dtype=torch.float64)
    third = []
    for loss in (lambda f, w: of_logits(f, w, target), plain):
        # As of a loss after a step of training, which has a gradient inside.
        (slope,) = torch.autograd.grad(loss(logits, weights), logits, create_graph=True)
        (second,) = torch.autograd.grad(slope.sin().sum(), logits, along.sum(), create_graph=True)
        third.append(torch.autograd.grad((second * along).sum(), (logits, weights)))
    torch.testing.assert_close(*third)


# PyTorch's own use of it, in the forward-mode rule of an operation.
@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:FutureWarning")
def test_its_derivatives_of_forward_mode_and_of_transforms_are_those_of_reverse_mode():
    logits, target = torch.randn(5, 4, dtype=torch.float64), torch.tensor([0, 1, 2, 3, 1])
    weights, along = torch.rand(5, dtype=torch.float64), torch.randn(5, 4, dtype=torch.float64)

    def loss(f):
        return of_logits(f, weights, target)

    reverse = torch.autograd.functional.hvp(loss, logits, along)[1]
    torch.testing.assert_close(torch.func.jvp(torch.func.grad(loss), (logits,), (along,))[1], reverse)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(logits, along)
        slope = torch.autograd.forward_ad.unpack_dual(loss(dual)).tangent
    torch.testing.assert_close(slope, (torch.func.grad(loss)(logits) * along).sum())


def test_gradients_of_several_vectors_at_a_time():
    logits, target = torch.randn(5, 4, dtype=torch.float64, requires_grad=True), torch.tensor([0, 1, 2, 3, 1])
    losses, vectors = cross_entropy(logits, target, reduction="none"), torch.eye(5, dtype=torch.float64)
    expected = torch.diag_embed((torch.softmax(logits.detach(), 1) - F.one_hot(target, 4)).T).permute(1, 2, 0)
    (rows,) = torch.autograd.grad(losses, logits, vectors, is_grads_batched=True, retain_graph=True)
    torch.testing.assert_close(rows, expected)
    one = torch.vmap(lambda vector: torch.autograd.grad(losses, logits, vector, retain_graph=True)[0])
    torch.testing.assert_close(one(vectors), expected)
