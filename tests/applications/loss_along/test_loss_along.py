"""The loss along directions: exact for quadratic losses, that of a displaced model, and the model untouched."""

import copy
import math

import numpy as np
import pytest
import torch
from saved_results import check_saved
from torch import nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

import hesspec


def regression(dtype):
    """A linear model away from its minimum, whose mean squared error is quadratic, in uneven batches."""
    torch.manual_seed(0)
    model = nn.Linear(4, 2).to(dtype)
    x, y = torch.randn(50, 4, dtype=dtype), torch.randn(50, 2, dtype=dtype)
    return model, nn.MSELoss(), list(zip(x.split(20), y.split(20), strict=True))


def classifier():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Dropout(0.5), nn.Linear(6, 3)).double()
    return model.eval(), nn.CrossEntropyLoss(), [(torch.randn(30, 4).double(), torch.randint(3, (30,)))]


@pytest.fixture(scope="module")
def network():
    model, loss_fn, data = classifier()
    hessian = hesspec.Hessian(model, loss_fn, data)
    return model, loss_fn, data, hessian, hesspec.eigenpairs(hessian, count=2, steps=30, progress=False)


@pytest.mark.parametrize(("dtype", "rounding"), [(torch.float64, 1e-12), (torch.float32, 2e-6)])
def test_a_quadratic_loss_is_its_quadratic_at_every_displacement(dtype, rounding):
    hessian = hesspec.Hessian(*regression(dtype))
    generator = torch.Generator().manual_seed(1)
    # Directions that are no eigenvectors: slopes, curvatures and the mixed term all count.
    directions = torch.randn(hessian.shape[0], 3, generator=generator).to(dtype)
    found = hesspec.loss_along(hessian, directions, points=7, plane=True)
    assert (np.abs(found.slopes) > 1e-4).all()
    assert abs(found.curvatures[0, 1]) > 1e-4
    scale = np.abs(found.losses).max()
    np.testing.assert_allclose(found.losses, found.quadratic, atol=rounding * scale)
    np.testing.assert_allclose(
        found.plane_losses, found.plane_quadratic, atol=rounding * np.abs(found.plane_losses).max()
    )
    assert found.risk == pytest.approx(hessian.risk, rel=rounding)
    assert found.losses[:, 3] == pytest.approx(found.risk, rel=rounding)


def test_losses_are_those_of_the_displaced_model(network):
    model, loss_fn, ((x, y),), hessian, pairs = network
    found = hesspec.loss_along(hessian, pairs, points=5, reach=[2.0, 3.0], plane=True)
    np.testing.assert_array_equal(found.displacements, [[-2, -1, 0, 1, 2], [-3, -1.5, 0, 1.5, 3]])
    other = copy.deepcopy(model)
    theta = parameters_to_vector(model.parameters()).detach()

    def loss(displacement):
        vector_to_parameters(theta + displacement, other.parameters())
        return float(loss_fn(other(x), y).detach())

    first, second = pairs.vectors.T
    expected = [[loss(t * d) for t in row] for d, row in zip((first, second), found.displacements, strict=True)]
    np.testing.assert_allclose(found.losses, expected, rtol=1e-12)
    plane = [[loss(s * first + t * second) for t in found.displacements[1]] for s in found.displacements[0]]
    np.testing.assert_allclose(found.plane_losses, plane, rtol=1e-12)


def test_curvatures_along_eigenvectors_are_eigenvalues_and_the_error_of_the_quadratic_is_cubic(network):
    *_, hessian, pairs = network
    found = hesspec.loss_along(hessian, pairs, reach=0.02, points=3)
    np.testing.assert_allclose(np.diag(found.curvatures), pairs.values, rtol=1e-8)
    wider = hesspec.loss_along(hessian, pairs, reach=0.04, points=3)
    ratios = (wider.losses - wider.quadratic)[:, 2] / (found.losses - found.quadratic)[:, 2]
    # 8 for t^3, up to the next order, which is a few percent here.
    np.testing.assert_allclose(ratios, 8, rtol=0.1)


def test_model_and_random_state_are_left_to_the_bit():
    model, loss_fn, data = classifier()
    hessian = hesspec.Hessian(model, loss_fn, data)
    model.zero_grad()
    before, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    hesspec.loss_along(hessian, torch.ones(hessian.shape[0]).double(), points=3)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_default_reach_changes_the_quadratic_by_the_loss(network):
    *_, hessian, pairs = network
    found = hesspec.loss_along(hessian, pairs, points=3)
    reach, slope, curvature = found.displacements[:, -1], np.abs(found.slopes), np.abs(np.diag(found.curvatures))
    np.testing.assert_allclose(reach * slope + reach**2 * curvature / 2, found.risk, rtol=1e-12)


def test_only_the_selected_parameters_move():
    model, loss_fn, data = classifier()
    hessian = hesspec.Hessian(model, loss_fn, data, params=["4.*"])
    found = hesspec.loss_along(hessian, torch.eye(hessian.shape[0]).double()[:, 0], reach=1.0, points=3)
    with torch.no_grad():
        model[4].weight[0, 0] += 1
    assert found.losses[0, 2] == pytest.approx(float(loss_fn(model(data[0][0]), data[0][1]).detach()), rel=1e-12)


def test_a_result_is_saved_shown_and_drawn(network, tmp_path):
    *_, hessian, pairs = network
    found = hesspec.loss_along(hessian, pairs, points=5, plane=True)
    check_saved(found, tmp_path)
    assert "departure" in str(found)
    assert [axes.get_title(loc="left").split(":")[0] for axes in found.plot().axes] == [
        "Direction 1",
        "Direction 2",
        "Plane",
    ]
    assert len(hesspec.plot_loss_along(hessian, pairs, points=3).axes) == 2


def test_a_loss_that_overflows_away_from_the_weights_is_kept_and_drawn():
    torch.manual_seed(0)
    model = nn.Linear(2, 1).double()
    data = [(torch.randn(8, 2).double(), torch.randn(8, 1).double())]
    hessian = hesspec.Hessian(model, lambda out, target: (out - target).square().exp().mean(), data)
    found = hesspec.loss_along(hessian, torch.tensor([1.0, 0, 0]).double(), points=5, reach=100.0)
    assert math.isinf(found.losses[0, 0])
    assert math.isfinite(found.losses[0, 2])
    found.plot().savefig("/dev/null", format="png")


@pytest.mark.parametrize(
    ("directions", "options", "words"),
    [
        (torch.ones(3).double(), {}, "must be \\(p, k\\)"),
        (torch.zeros(10).double(), {}, "is zero"),
        (torch.full((10,), torch.nan).double(), {}, "NaN"),
        ([1.0], {}, "is a list"),
        (torch.ones(10).double(), {"points": 4}, "points is 4"),
        (torch.ones(10).double(), {"reach": -1.0}, "reach is -1.0"),
        (torch.ones(10).double(), {"reach": [1.0, 2.0]}, "1 of them"),
        (torch.ones(10).double(), {"plane": True}, "two directions"),
    ],
)
def test_bad_input_is_refused(directions, options, words):
    hessian = hesspec.Hessian(*regression(torch.float64))
    with pytest.raises(ValueError, match=words):
        hesspec.loss_along(hessian, directions, **options)


def test_other_matrices_and_zero_losses_are_refused():
    model, loss_fn, data = regression(torch.float64)
    with pytest.raises(ValueError, match="GaussNewton"):
        hesspec.loss_along(hesspec.GaussNewton(model, loss_fn, data), torch.ones(10).double())
    zero = [(x, model(x).detach()) for x, _ in data]
    with pytest.raises(ValueError, match="pass reach="):
        hesspec.loss_along(hesspec.Hessian(model, loss_fn, zero), torch.ones(10).double())
