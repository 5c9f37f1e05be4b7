"""Lyapunov exponents against closed forms: quadratics, time-varying linear maps, a chaotic map, momentum."""

import math

import numpy as np
import pytest
import torch
from torch import nn

import hesspec

stability = hesspec.stability


def rotation(size, seed):
    return torch.linalg.qr(torch.randn(size, size, generator=torch.Generator().manual_seed(seed)).double())[0]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_quadratic_has_the_logarithms_of_its_step(dtype):
    eigenvalues = torch.tensor([25.0, -5.0, 3.0, 7.0, 9.0]).double()
    q = rotation(5, 0)
    hessian = (q * eigenvalues @ q.T).to(dtype)
    steps = [stability.StepJacobian(hessian, 0.1)] * 300
    found = stability.lyapunov_exponents(steps, count=4, discard=150)
    # |1 - .1 lambda| = 1.5 twice, .7, .3, .1: directions have settled to (.3/.1)^-150.
    expected = np.log([1.5, 1.5, 0.7, 0.3])
    np.testing.assert_allclose(found.exponents, expected, atol=40 * torch.finfo(dtype).eps * 10)
    assert (found.products, found.dimension, found.growth.shape) == (4 * 300, 5, (150, 4))
    first, second, third = expected[:3]
    assert found.kaplan_yorke_dimension == pytest.approx(
        3 + (first + second + third) / -expected[3], abs=1e-3 if dtype == torch.float32 else 1e-9
    )


def test_time_varying_linear_map_with_known_factors():
    # A_t = Q_{t+1} D_t Q_t^T, so that the products have the columns of Q as directions, and D_t as factors.
    generator = np.random.default_rng(0)
    factors = np.array([2.0, 0.9, 0.3, 0.05]) * np.exp(generator.uniform(-0.2, 0.2, size=(200, 4)))
    maps = [
        rotation(4, t + 1) @ torch.diag(torch.tensor(factor)) @ rotation(4, t).T for t, factor in enumerate(factors)
    ]
    found = stability.lyapunov_exponents(maps, count=3, discard=80)
    np.testing.assert_allclose(found.growth, np.log(factors[80:, :3]), atol=1e-9)
    np.testing.assert_allclose(found.exponents, np.log(factors[80:, :3]).mean(axis=0), atol=1e-12)


def test_all_exponents_add_up_to_the_volume():
    maps = [torch.randn(4, 4, generator=torch.Generator().manual_seed(t)).double() for t in range(50)]
    found = stability.lyapunov_exponents(maps, count=4)
    volume = np.mean([math.log(abs(float(torch.linalg.det(each)))) for each in maps])
    assert found.exponents.sum() == pytest.approx(volume, abs=1e-11)


def test_chaotic_map_between_its_dimension_and_the_sharpness_dimension():
    # x -> 1 - 2 x^2, y -> .1 y: Lyapunov exponents ln 2 and ln .1.
    x, maps = 0.3, []
    for _ in range(4_000):
        maps.append(torch.diag(torch.tensor([-4 * x, 0.1], dtype=torch.float64)))
        x = 1 - 2 * x * x
    found = stability.lyapunov_exponents(maps, count=2)
    # ln|4 x| has the standard deviation pi / sqrt(12) on the attractor; three standard errors of independent ones.
    assert found.exponents[0] == pytest.approx(math.log(2), abs=3 * math.pi / math.sqrt(12 * 4_000))
    assert found.kaplan_yorke_dimension == pytest.approx(1 + found.exponents[0] / math.log(10), abs=1e-3)
    largest = stability.sharpness_dimension([-3.0, 0.9], 1.0).value
    assert 1 <= found.kaplan_yorke_dimension <= largest


@pytest.mark.parametrize("decay", [0.0, 0.3])
@pytest.mark.parametrize("momentum", [0.0, 0.8])
def test_step_is_that_of_torch_on_a_quadratic(momentum, decay):
    hessian = torch.randn(6, 6, generator=torch.Generator().manual_seed(0)).double()
    hessian = hessian + hessian.T
    w = nn.Parameter(torch.randn(6, generator=torch.Generator().manual_seed(1)).double())
    optimizer = torch.optim.SGD([w], lr=0.05, momentum=momentum, weight_decay=decay)
    path = [w.detach().clone()]
    for _ in range(3):
        optimizer.zero_grad()
        (w @ hessian @ w / 2).backward()
        optimizer.step()
        path.append(w.detach().clone())
    step = stability.StepJacobian(hessian, 0.05, momentum=momentum, weight_decay=decay)
    state = torch.cat([path[2], path[1]]) if momentum else path[2]
    torch.testing.assert_close((step @ state)[:6], path[3], rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(step @ state[:, None], (step @ state)[:, None])


def test_exponents_with_momentum_are_those_of_the_sharpness_dimension():
    eigenvalues = torch.tensor([45.0, -6.0, -1.0], dtype=torch.float64)
    steps = [stability.StepJacobian(torch.diag(eigenvalues), 0.1, momentum=0.5)] * 400
    found = stability.lyapunov_exponents(steps, count=3, discard=200)
    expected = stability.sharpness_dimension(eigenvalues.numpy(), 0.1, momentum=0.5)
    np.testing.assert_allclose(found.exponents, expected.exponents[:3], atol=1e-9)


def test_along_a_training_that_happens_in_between():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    inputs, targets = torch.randn(12, 3).double(), torch.randn(12, 1).double()
    loss_fn, optimizer = nn.MSELoss(), torch.optim.SGD(model.parameters(), lr=0.2)
    dense = []

    def steps():
        for _ in range(6):
            hessian = hesspec.Hessian(model, loss_fn, [(inputs, targets)])
            dense.append(hessian @ torch.eye(hessian.shape[0], dtype=torch.float64))
            yield stability.StepJacobian(hessian, 0.2)
            optimizer.zero_grad()
            loss_fn(model(inputs), targets).backward()
            optimizer.step()

    p = sum(parameter.numel() for parameter in model.parameters())
    found = stability.lyapunov_exponents(steps(), count=p)
    volume = [torch.linalg.slogdet(torch.eye(p).double() - 0.2 * each)[1].item() for each in dense]
    np.testing.assert_allclose(found.growth.sum(axis=1), volume, atol=1e-10)
    assert not np.allclose(volume[0], volume[-1])


def test_a_map_that_is_singular_has_an_exponent_of_minus_infinity():
    found = stability.lyapunov_exponents([torch.diag(torch.tensor([2.0, 0.0]))] * 3, count=2)
    assert found.exponents[0] == pytest.approx(math.log(2), abs=0.5)
    assert found.exponents[1] == -math.inf


@pytest.mark.parametrize(
    ("maps", "options", "message"),
    [
        ([], {"count": 1}, "There are 0 steps, of which 0"),
        ([torch.eye(2)] * 3, {"count": 1, "discard": 3}, "There are 3 steps, of which 3"),
        ([torch.eye(2)], {"count": 3}, "count is 3, but there are only 2"),
        ([torch.eye(2)], {"count": 0}, "count is 0"),
        ([torch.eye(2)], {"count": 1, "discard": -1}, "discard is -1"),
        ([torch.eye(2), torch.eye(3)], {"count": 1}, r"step 1 has shape \(3, 3\)"),
    ],
)
def test_bad_input_is_answered_with_a_sentence(maps, options, message):
    with pytest.raises(ValueError, match=message):
        stability.lyapunov_exponents(maps, **options)


def test_a_run_that_diverges_is_an_error():
    with pytest.raises(hesspec.NonFiniteError, match="step 1"):
        stability.lyapunov_exponents([torch.eye(2), torch.full((2, 2), torch.nan)], count=1)


def test_a_dimension_beyond_the_exponents_is_refused():
    found = stability.lyapunov_exponents([torch.eye(3) * 2] * 4, count=2)
    with pytest.raises(ValueError, match="at least 2"):
        _ = found.kaplan_yorke_dimension
    assert stability.lyapunov_exponents([torch.eye(2) * 2] * 4, count=2).kaplan_yorke_dimension == 2
