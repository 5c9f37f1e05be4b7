"""Subspaces for Laplace approximations against dense algebra of plain autograd."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call, jacrev

from hesspec import laplace


def fitted(model, loss, data, **options):
    return laplace.Laplace(model, loss, data, **options)


def diagonal():
    """Four inputs with the Jacobian diag(3, 2, 1, 1/2), and unit noise and prior."""
    x = torch.diag(torch.tensor([3.0, 2.0, 1.0, 0.5], dtype=torch.float64))
    torch.manual_seed(0)
    model = nn.Linear(4, 1, bias=False).double()
    return fitted(model, nn.MSELoss(), [(x, torch.ones(4, 1, dtype=torch.float64))]), x


def network(outputs=1, samples=20):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 7), nn.Tanh(), nn.Linear(7, outputs)).double()
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(samples, 3, dtype=torch.float64, generator=generator)
    test = torch.randn(8, 3, dtype=torch.float64, generator=generator)
    if outputs == 1:
        return fitted(model, nn.MSELoss(), [(x, torch.sin(x[:, :1]))], noise=0.5), model, x, test
    return fitted(model, nn.CrossEntropyLoss(), [(x, torch.arange(samples) % outputs)]), model, x, test


def stacked(model, x):
    theta = {name: value.detach() for name, value in model.named_parameters()}
    parts = jacrev(lambda named: functional_call(model, named, (x,)))(theta)
    return torch.cat([part.flatten(2) for part in parts.values()], 2).flatten(0, 1)


def dense(found, model, test):
    """J and Psi from products with the identity."""
    eye = torch.eye(found.theta.numel(), dtype=torch.float64)
    precision = found.marginal.likelihood.scale * (found.operator @ eye) + found.prior_precision * eye
    return stacked(model, test), precision


def in_subspace(jacobian, precision, basis):
    half = jacobian @ basis
    return half @ torch.linalg.solve(basis.T @ precision @ basis, half.T)


ERRORS = (0.7310832774866962, 0.408248290463863, 0.1516196087157807)


def test_four_inputs_with_a_diagonal_jacobian():
    found, x = diagonal()
    for size, error in enumerate(ERRORS, 1):
        best = laplace.optimal_subspace(found, x, size)
        assert best.relative_error == pytest.approx(error, abs=1e-12)
        assert best.eigenvalues == pytest.approx(torch.tensor([0.9, 0.8, 0.5, 0.2], dtype=torch.float64), abs=1e-12)
    table = laplace.compare_subspaces(found, x, {"best": best.vectors}, [1, 2, 3])
    assert table.relative_error.values[0] == pytest.approx(ERRORS, abs=1e-12)
    full = laplace.compare_subspaces(found, x, {"all": torch.arange(4)}, [4])
    assert float(full.log_trace[0, 0]) == pytest.approx(0.8754687373539, abs=1e-12)
    assert float(full.kl[0, 0]) == pytest.approx(0, abs=1e-12)
    assert float(full.w2[0, 0]) == pytest.approx(0, abs=1e-7)
    spectrum = found.pairs.spectrum
    for size, error in enumerate(ERRORS, 1):
        assert laplace.required_dimension(spectrum, prior_precision=1.0, error=error + 1e-9) == size
        assert laplace.required_dimension(spectrum, prior_precision=1.0, error=error - 1e-6) == size + 1


def test_best_error_is_that_of_eckart_and_young_and_of_the_top_eigenspace_on_training_inputs():
    found, model, x, _ = network()
    jacobian, precision = dense(found, model, x)
    sigma = jacobian @ torch.linalg.solve(precision, jacobian.T)
    values = torch.linalg.eigvalsh(sigma).flip(0)
    sizes = [1, 3, 6]
    table = laplace.compare_subspaces(found, x, {"top": laplace.top_eigenvectors(found, 6)}, sizes)
    for j, size in enumerate(sizes):
        truth = float(values[size:].norm() / values.norm())
        assert laplace.optimal_subspace(found, x, size).relative_error == pytest.approx(truth, abs=1e-12)
        assert float(table.relative_error[0, j]) == pytest.approx(truth, abs=1e-9)


def test_top_eigenvectors_are_the_worst_subspace_for_new_inputs_of_a_classifier():
    found, model, _, test = network(outputs=3)
    best = laplace.optimal_subspace(found, test, 10).vectors
    table = laplace.compare_subspaces(
        found, test, {"best": best, "top": laplace.top_eigenvectors(found, 10)}, [2, 5, 10]
    )
    best, top = table.relative_error.values
    assert (top > 0.8).all()
    assert (best < top / 2).all()
    assert (np.diff(best) < 0).all()


def test_metrics_are_those_of_dense_algebra():
    found, model, _, test = network(outputs=3)
    jacobian, precision = dense(found, model, test)
    sigma = jacobian @ torch.linalg.solve(precision, jacobian.T)
    subspaces = {
        "random": laplace.random_subspace(found, 9),
        "magnitude": laplace.largest_magnitude(found, 9),
        "variance": laplace.largest_diagonal_variance(found, 9),
        "last layer": laplace.last_layer(found),
    }
    table = laplace.compare_subspaces(found, test, subspaces, [4, 9, 24, 25])
    assert table.sizes == {"subspace": 4, "size": 4}
    assert table.attrs["trace"] == pytest.approx(float(sigma.trace()), rel=1e-10)
    ridge = 0.1 * torch.eye(len(sigma), dtype=torch.float64)
    for i, given in enumerate(subspaces.values()):
        columns = given if given.is_floating_point() else torch.eye(len(precision), dtype=torch.float64)[:, given]
        for j, size in enumerate((4, 9, 24)):
            if size > columns.shape[1]:
                assert np.isnan(table.relative_error[i, j])
                continue
            part = in_subspace(jacobian, precision, columns[:, :size])
            assert float(table.trace[i, j]) == pytest.approx(float(part.trace()), rel=1e-8)
            assert float(table.log_trace[i, j]) == pytest.approx(math.log(float(part.trace())), abs=1e-8)
            error = float((sigma - part).norm() / sigma.norm())
            assert float(table.relative_error[i, j]) == pytest.approx(error, rel=1e-8)
            normal = [
                torch.distributions.MultivariateNormal(torch.zeros(len(sigma), dtype=torch.float64), c + ridge)
                for c in (part, sigma)
            ]
            assert float(table.kl[i, j]) == pytest.approx(float(torch.distributions.kl_divergence(*normal)), rel=1e-8)
            # Tr (S T)^1/2 from the eigenvalues of S T, which are at least zero.
            fidelity = torch.linalg.eigvals(sigma @ part).real.clamp(min=0).sqrt().sum()
            w2 = math.sqrt(float(sigma.trace() + part.trace() - 2 * fidelity))
            assert float(table.w2[i, j]) == pytest.approx(w2, abs=1e-5)
    assert len(laplace.last_layer(found)) == 24
    assert np.isnan(table.relative_error.values[:, 3]).all()


def test_no_subspace_has_more_variance_than_all_parameters():
    found, model, _, test = network(outputs=3)
    jacobian, precision = dense(found, model, test)
    sigma = jacobian @ torch.linalg.solve(precision, jacobian.T)
    best = laplace.optimal_subspace(found, test, 5).relative_error
    for seed in range(100):
        part = in_subspace(jacobian, precision, laplace.random_subspace(found, 5, seed=seed))
        assert torch.linalg.eigvalsh(sigma - part).min() >= -1e-12
        assert float((sigma - part).norm() / sigma.norm()) >= best


def test_bad_input_is_told_in_sentences():
    found, x = diagonal()
    for dimension in (0, 5, 1.5):
        with pytest.raises(ValueError, match=r"dimension is .* from 1 to 4"):
            laplace.optimal_subspace(found, x, dimension)
    with pytest.raises(ValueError, match="shape"):
        laplace.compare_subspaces(found, x, {"short": torch.zeros(3, 2)}, [1])
    for indices in ([4], [-1], [1, 1]):
        with pytest.raises(ValueError, match="distinct indices"):
            laplace.compare_subspaces(found, x, {"out": torch.tensor(indices)}, [1])
    with pytest.raises(ValueError, match="sizes is"):
        laplace.compare_subspaces(found, x, {"all": torch.arange(4)}, [0])
    with pytest.raises(ValueError, match="Sigma is zero"):
        laplace.optimal_subspace(found, torch.zeros(1, 4, dtype=torch.float64), 1)
    for error in (0.0, 1.0):
        with pytest.raises(ValueError, match="between 0 and 1"):
            laplace.required_dimension(found.pairs.spectrum, prior_precision=1.0, error=error)
