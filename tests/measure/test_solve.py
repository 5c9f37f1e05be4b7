"""`hesspec.solve` against dense solutions: accuracy, error bounds, iterations saved, and bad input."""

import dataclasses

import pytest
import torch
from cases import batches, mlp
from torch import nn

import hesspec

PRECISIONS = {torch.float32: 1e-4, torch.float64: 1e-9}
SIZE = 300


def matrix_of(values, seed=0):
    generator = torch.Generator().manual_seed(seed)
    turn = torch.linalg.qr(torch.randn(SIZE, SIZE, dtype=torch.float64, generator=generator))[0]
    matrix = (turn * values) @ turn.T
    return (matrix + matrix.T) / 2, torch.randn(SIZE, 3, dtype=torch.float64, generator=generator)


def spectrum(*, indefinite):
    """Eight outliers up to 1,000, and a bulk in [0, 1], or in [-0.3, 0.7] beside outliers of both signs."""
    values = torch.cat([torch.logspace(3, 1.5, 8), torch.linspace(0, 1, SIZE - 8)]).double()
    if indefinite:
        values[8:] -= 0.3
        values[:8:3] *= -1
    return values


@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize("indefinite", [False, True], ids=["semi-definite", "indefinite"])
def test_solutions_and_error_bounds_against_the_truth_and_iterations_that_eigenpairs_save(indefinite, dtype):
    tolerance = PRECISIONS[dtype]
    exact, rhs = matrix_of(spectrum(indefinite=indefinite))
    matrix, rhs = exact.to(dtype), rhs.to(dtype)
    damping = 0.5
    truth = torch.linalg.solve(matrix.double() + damping * torch.eye(SIZE, dtype=torch.float64), rhs.double())
    pairs = hesspec.eigenpairs(matrix, count=8, steps=60)
    assert len(pairs.values) == 8
    method = "minres" if indefinite else "cg"
    counts = {}
    for given in (None, pairs):
        for b in (rhs[:, 0], rhs):
            found = hesspec.solve(matrix, b, damping=damping, preconditioner=given, method=method, tolerance=tolerance)
            assert found.solution.shape == b.shape
            assert found.solution.dtype == dtype
            assert found.residual <= tolerance
            error = float(
                (found.solution.double() - truth[:, : b.reshape(SIZE, -1).shape[1]].reshape(b.shape)).norm(dim=0).max()
            )
            # The smallest |eigenvalue + damping| is 0.2 or 0.5. Rounding of the residual: 3 eps ||A|| ||x||.
            floor = 3 * torch.finfo(dtype).eps * 1e3 * float(truth.norm(dim=0).max())
            assert error <= (tolerance * float(b.reshape(SIZE, -1).norm(dim=0).max()) + floor) / (
                0.2 if indefinite else damping
            )
            assert error <= found.error_estimate
            if not indefinite:
                assert error <= found.error_bound
                assert found.error_bound == found.error_estimate
            else:
                assert found.error_bound == float("inf")
            counts[given is not None, b.dim()] = found.iterations
    assert counts[True, 1] <= 0.6 * counts[False, 1]
    assert counts[True, 2] <= counts[False, 2]


def test_the_bound_holds_for_a_solve_that_is_cut_off():
    matrix, rhs = matrix_of(spectrum(indefinite=False))
    truth = torch.linalg.solve(matrix + 0.1 * torch.eye(SIZE, dtype=torch.float64), rhs[:, 0])
    for most in (1, 5, 20):
        with pytest.warns(UserWarning, match=f"The relative residual is .* after {most} iterations, not 1e-05"):
            found = hesspec.solve(matrix, rhs[:, 0], damping=0.1, method="cg", max_iterations=most)
        assert float((found.solution - truth).norm()) <= found.error_bound
        assert found.products == most + 1


def network(dtype):
    data = batches((5,), lambda size: torch.arange(size) % 4, (16,))
    model = mlp().to(dtype)
    return model, nn.CrossEntropyLoss(), [(inputs.to(dtype), targets) for inputs, targets in data]


@pytest.mark.parametrize("dtype", PRECISIONS)
def test_operators_of_networks_choose_their_method(dtype):
    problem, cache = network(dtype), hesspec.GraphCache()
    for kind, method in ((hesspec.GaussNewton, "cg"), (hesspec.Hessian, "minres")):
        operator = kind(*problem, graphs=cache)
        p = operator.shape[0]
        dense = (operator @ torch.eye(p, dtype=dtype)).double()
        dense = (dense + dense.T) / 2
        # Far from minus any eigenvalue of the Hessian.
        damping = 0.3 * float(torch.linalg.matrix_norm(dense, 2))
        b = torch.linspace(-1, 1, p, dtype=dtype)
        found = hesspec.solve(operator, b, damping=damping, tolerance=PRECISIONS[dtype])
        truth = torch.linalg.solve(dense + damping * torch.eye(p, dtype=torch.float64), b.double())
        assert found.method == method
        assert (
            float((found.solution - truth).norm())
            <= found.error_estimate
            <= 1e3 * PRECISIONS[dtype] * float(truth.norm())
        )
    combined = hesspec.solve(2 * operator + hesspec.Identity.like(operator), b, damping=damping, tolerance=1e-4)
    truth = torch.linalg.solve(2 * dense + (1 + damping) * torch.eye(p, dtype=torch.float64), b.double())
    assert (combined.solution - truth).norm() <= 1e-3 * truth.norm()


def test_eigenpairs_of_a_nearby_matrix_save_iterations_too():
    matrix, rhs = matrix_of(spectrum(indefinite=True))
    other = matrix + 0.01 * matrix_of(torch.ones(SIZE).double().cumsum(0) / SIZE, seed=3)[0]
    pairs = hesspec.eigenpairs(other, count=8, steps=60)
    plain = hesspec.solve(matrix, rhs[:, 0], damping=0.5)
    found = hesspec.solve(matrix, rhs[:, 0], damping=0.5, preconditioner=pairs)
    assert found.iterations <= 0.7 * plain.iterations
    assert found.residual <= 1e-5


def test_a_tolerance_below_rounding_is_reached_up_to_rounding():
    exact, rhs = matrix_of(spectrum(indefinite=False))
    matrix, b = exact.float(), rhs[:, 0].float()
    found = hesspec.solve(matrix, b, damping=0.01, method="cg", tolerance=1e-9, max_iterations=5000)
    left = b.double() - matrix.double() @ found.solution.double() - 0.01 * found.solution.double()
    unit = torch.finfo(torch.float32).eps * 1e3 * float(found.solution.double().norm() / b.norm())
    assert 1e-9 < found.residual <= unit
    assert abs(float(left.norm() / b.norm()) - found.residual) <= unit
    truth = torch.linalg.solve(matrix.double() + 0.01 * torch.eye(SIZE, dtype=torch.float64), b.double())
    assert float((found.solution.double() - truth).norm()) <= found.error_bound


class Diagonal:
    """A diagonal matrix in float32 that takes vectors only, as an operator of another library may."""

    dtype, device = torch.float32, torch.device("cpu")

    def __init__(self, values):
        self.shape, self.values = (len(values),) * 2, values

    def __matmul__(self, vector):
        assert vector.dim() == 1
        return self.values * vector


@pytest.mark.parametrize("method", ["cg", "minres"])
def test_long_vectors_in_float32_lose_no_digits(method):
    values = torch.linspace(0, 3, 1 << 20)
    b = torch.randn(len(values), generator=torch.Generator().manual_seed(0))
    found = hesspec.solve(Diagonal(values), b, damping=1.0, method=method, tolerance=2e-6)
    truth = b.double() / (values.double() + 1)
    error = float((found.solution.double() - truth).norm())
    # The condition number is 4: each iteration takes a third of the error, and rounding takes back little.
    assert found.iterations <= 15
    assert error <= 3e-6 * float(b.norm())
    assert error <= found.error_estimate


def test_a_right_hand_side_of_zero_has_the_solution_zero():
    matrix, _ = matrix_of(spectrum(indefinite=True))
    for method in ("cg", "minres"):
        found = hesspec.solve(matrix, torch.zeros(SIZE, dtype=torch.float64), damping=0.5, method=method)
        assert (found.iterations, found.residual, found.error_estimate) == (0, 0.0, 0.0)
        assert not found.solution.any()


MATRIX = torch.diag(torch.linspace(-1, 3, 10))
ONES = torch.ones(10)


@pytest.mark.parametrize(
    ("operator", "rhs", "options", "message"),
    [
        (MATRIX, [1.0], {}, "rhs is a list; it must be a tensor of shape"),
        (MATRIX, torch.ones(9), {}, r"rhs has shape \(9,\); it must be \(10,\) or \(10, n\)"),
        (MATRIX, torch.ones(10, 0), {}, r"rhs has shape \(10, 0\)"),
        (MATRIX, ONES.double(), {}, "rhs is torch.float64 on cpu, but the operator torch.float32"),
        (MATRIX, ONES * torch.nan, {}, "rhs contains NaN or infinity"),
        (MATRIX, ONES, {"damping": -0.1}, "damping is -0.1; it must be a nonnegative number. For A - mu I"),
        (MATRIX, ONES, {"damping": float("nan")}, "damping is nan"),
        (MATRIX, ONES, {"method": "lu"}, "method='lu' is unknown"),
        (MATRIX, ONES, {"tolerance": 0}, "tolerance is 0"),
        (MATRIX, ONES, {"max_iterations": 0.5}, "max_iterations is 0.5"),
        (MATRIX, ONES, {"damping": 0, "method": "cg"}, "damping is 0; conjugate gradients need a positive damping"),
        (MATRIX, ONES, {"method": "cg", "damping": 0.01}, "is not positive, with B the matrix of the system"),
        (
            MATRIX,
            ONES,
            {"preconditioner": MATRIX},
            "preconditioner is a Tensor; it must be the result of hesspec.eigenpairs",
        ),
        (MATRIX[:5], ONES, {}, r"The operator has shape \(5, 10\)"),
        (MATRIX.half(), ONES.half(), {}, "is torch.float16"),
        (
            MATRIX + torch.ones(10, 10).triu(1),
            torch.arange(10.0),
            {},
            "The operator is not symmetric: for two unit vectors",
        ),
    ],
)
def test_bad_arguments_are_refused(operator, rhs, options, message):
    with pytest.raises(ValueError, match=message):
        hesspec.solve(operator, rhs, **{"damping": 1.5, **options})


def test_eigenpairs_of_another_size_and_products_that_are_not_finite_are_refused():
    pairs = hesspec.eigenpairs(torch.diag(torch.arange(20.0)), count=2, steps=20)
    with pytest.raises(ValueError, match="eigenvectors of the preconditioner are of size 20"):
        hesspec.solve(MATRIX, ONES, damping=1.0, preconditioner=pairs)
    with pytest.raises(hesspec.NonFiniteError, match="A product of the operator contains NaN"):
        hesspec.solve(MATRIX * torch.inf, ONES, damping=1.0)
    # None that is left is no preconditioner.
    empty = dataclasses.replace(pairs, values=pairs.values[:0], vectors=torch.zeros(10, 0))
    assert hesspec.solve(MATRIX, ONES, damping=1.5, preconditioner=empty).eigenpairs == 0


def test_a_solution_is_shown():
    assert "method" in repr(hesspec.solve(MATRIX, ONES, damping=1.5))
    assert "at most" in repr(hesspec.solve(MATRIX.abs(), ONES, damping=1.5, method="cg"))
