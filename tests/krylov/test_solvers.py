"""Conjugate gradients and MINRES on systems with a known solution."""

import numpy as np
import pytest
import torch

from hesspec.krylov.conjugate_gradients import column_norms, conjugate_gradients
from hesspec.krylov.minres import minres
from hesspec.krylov.preconditioning import SpectralPreconditioner

SIZE = 300
# Twelve outliers and a bulk; the condition number is 1e5 with them and 11 without.
VALUES = torch.cat([torch.logspace(4, 2, 12), torch.linspace(0.1, 1.1, SIZE - 12)]).double()
INDEFINITE = VALUES * torch.where(torch.arange(SIZE) % 2 == 0, 1, -1)


def system(values, columns=1, seed=0):
    generator = torch.Generator().manual_seed(seed)
    turn = torch.linalg.qr(torch.randn(SIZE, SIZE, dtype=torch.float64, generator=generator))[0]
    matrix = (turn * values) @ turn.T
    rhs = torch.randn(SIZE, columns, dtype=torch.float64, generator=generator)
    return (matrix + matrix.T) / 2, turn, rhs


def preconditioner(turn, values):
    return SpectralPreconditioner(turn[:, :12], values[:12].abs(), float(values[:12].abs().min()))


CASES = {"cg": (conjugate_gradients, VALUES), "minres": (minres, VALUES), "indefinite": (minres, INDEFINITE)}


@pytest.mark.parametrize("columns", [1, 3])
@pytest.mark.parametrize("name", CASES)
def test_solutions_are_those_of_the_dense_system_and_eigenpairs_save_iterations(name, columns):
    method, values = CASES[name]
    matrix, turn, rhs = system(values, columns)
    how = {"tolerance": 1e-9, "max_iterations": 2000}
    plain = method(matrix.matmul, rhs, **how)
    given = method(matrix.matmul, rhs, preconditioner=preconditioner(turn, values), **how)
    truth = torch.linalg.solve(matrix, rhs)
    for found in (plain, given):
        assert found.converged
        assert (column_norms(found.residual) <= 2e-9 * column_norms(rhs)).all()
        assert torch.equal(found.residual, rhs - matrix @ found.x)
        # The smallest absolute eigenvalue is 0.1.
        assert (column_norms(found.x - truth) <= 2e-8 * column_norms(rhs)).all()
    # Each outlier takes about one iteration for each column without the preconditioner, more where rounding brings it
    # back, and blocks of columns find several at once.
    assert given.iterations <= 0.6 * plain.iterations


def test_conjugate_gradients_take_the_steps_of_the_condition_number():
    matrix, turn, rhs = system(VALUES)
    found = conjugate_gradients(
        matrix.matmul, rhs, preconditioner=preconditioner(turn, VALUES), tolerance=1e-8, max_iterations=SIZE
    )
    # ||e||_B <= 2 ((sqrt(k) - 1)/(sqrt(k) + 1))^(m - 1) ||e_0||_B for a bulk of condition number 11 and one outlier
    # (Axelsson 1976), and the norm of the residual is at most sqrt(1e5) times as large.
    root = 11**0.5
    assert found.iterations <= 2 + np.log(2 * 1e5**0.5 * 1e8) / -np.log((root - 1) / (root + 1))


def test_dependent_columns_and_zero_columns_do_no_harm():
    matrix, _, rhs = system(VALUES)
    several = torch.cat([rhs, 2 * rhs, torch.zeros_like(rhs)], dim=1)
    truth = torch.linalg.solve(matrix, several)
    for method in (conjugate_gradients, minres):
        found = method(matrix.matmul, several, tolerance=1e-8, max_iterations=2000)
        assert (found.x - truth).norm() <= 1e-6 * truth.norm()
        assert not found.x[:, 2].any()
        assert method(matrix.matmul, several[:, 2:], tolerance=1e-8, max_iterations=9).iterations == 0


def test_the_smallest_harmonic_ritz_value_is_above_the_smallest_eigenvalue_and_converges_to_it():
    matrix, turn, rhs = system(INDEFINITE)
    smallest = [minres(matrix.matmul, rhs, tolerance=1e-12, max_iterations=most).smallest for most in (10, 100, 1000)]
    assert (np.array(smallest) >= 0.1 * (1 - 1e-9)).all()
    assert smallest[-1] == pytest.approx(0.1, rel=0.01)
    assert smallest[0] > 1.5 * smallest[-1]


def test_a_singular_system_in_the_range_is_solved():
    values = torch.where(torch.arange(SIZE) < 100, 0.0, INDEFINITE)
    matrix, turn, rhs = system(values)
    inside = matrix @ rhs
    found = minres(matrix.matmul, inside, tolerance=1e-9, max_iterations=2000)
    assert (column_norms(found.residual) <= 1e-8 * column_norms(inside)).all()
    # A right-hand side in the null space has no solution: nothing is claimed.
    outside = minres(matrix.matmul, turn[:, :1], tolerance=1e-9, max_iterations=50)
    assert float(outside.residual.norm()) >= 0.99


def test_negative_curvature_is_an_error():
    matrix, _, rhs = system(INDEFINITE)
    with pytest.raises(ValueError, match="is not positive, with B the matrix of the system"):
        conjugate_gradients(matrix.matmul, rhs, tolerance=1e-8, max_iterations=100)


def test_the_preconditioner_is_the_matrix_that_it_says():
    _, turn, rhs = system(VALUES, 4)
    matrix = (turn[:, :12] * (VALUES[:12] - 7)) @ turn[:, :12].T + 7 * torch.eye(SIZE, dtype=torch.float64)
    found = SpectralPreconditioner(turn[:, :12], VALUES[:12], 7.0)
    assert (found.root(found.root(matrix @ rhs)) - rhs).norm() <= 1e-10 * rhs.norm()
    assert torch.allclose(found.norms(rhs) ** 2, (rhs * (matrix @ rhs)).sum(0), rtol=1e-10)
    assert found.root_norm == pytest.approx(7**-0.5)
