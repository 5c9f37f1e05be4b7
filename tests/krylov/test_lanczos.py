"""The Lanczos process, its basis and its Ritz pairs on operators whose answers are known in closed form."""

import re

import numpy as np
import pytest
import torch

import hesspec
from hesspec.krylov.basis import KrylovBasis
from hesspec.krylov.lanczos import Lanczos
from hesspec.krylov.lanczos_state import rounding_unit
from hesspec.krylov.ritz import clustered_bounds, resolve, ritz_pairs
from hesspec.krylov.storage import Storage
from hesspec.krylov.vectors import Space

CPU = torch.device("cpu")
FULL = Storage()
PRECISIONS = [torch.float32, torch.float64]
# Departure from orthonormality was at most 10.3 eps (spectral norm) in 10,000 runs of up to 300 steps.
ORTHONORMAL = 20


class Product:
    """An operator that is its product with a vector."""

    def __init__(self, p, product, dtype=torch.float64):
        self.shape, self.dtype, self.device, self.product = (p, p), dtype, CPU, product

    def __matmul__(self, vector):
        """As given."""
        return self.product(vector)


def diagonal(values, dtype=torch.float64):
    values = torch.as_tensor(values, dtype=dtype)
    return Product(len(values), lambda v: values * v if v.dim() == 1 else values[:, None] * v, dtype)


def toeplitz(p, dtype=torch.float64):
    """Second differences: eigenvalues 2 - 2 cos(k pi / (p + 1)), k = 1..p."""
    off = torch.full((p - 1,), -1.0, dtype=dtype)
    return torch.diag(torch.full((p,), 2.0, dtype=dtype)) + torch.diag(off, 1) + torch.diag(off, -1)


def run(operator, steps, start=None, deflated=None, storage=FULL, partial=False):
    generator = torch.Generator().manual_seed(0)
    if start is None:
        start = torch.randn(operator.shape[0], generator=generator).to(operator.dtype)
    lanczos = Lanczos(start, generator, deflated=deflated, storage=storage, partial=partial)
    while len(lanczos) < steps and not lanczos.finished:
        lanczos.step(operator @ lanczos.vector)
    return lanczos


def vectors(lanczos):
    return torch.stack([lanczos.basis[i] for i in range(len(lanczos))]).double()


def departure(rows):
    """Spectral norm of Q Q^T - I."""
    return float(torch.linalg.matrix_norm(rows @ rows.T - torch.eye(len(rows), dtype=rows.dtype), 2))


# Closed forms --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize("p", [2, 3, 10, 100])
def test_second_differences_have_their_eigenvalues(p, dtype):
    spectrum = hesspec.spectrum(toeplitz(p, dtype), steps=p)
    truth = 2 - 2 * np.cos(np.arange(1, p + 1) * np.pi / (p + 1))
    order = np.argsort(spectrum.eigenvalues)
    assert spectrum.exact
    assert (np.abs(spectrum.eigenvalues[order] - truth) <= spectrum.error_bounds[order]).all()


def test_a_tridiagonal_matrix_is_its_own_lanczos_matrix():
    lanczos = run(toeplitz(50), 20, start=torch.eye(50, dtype=torch.float64)[0])
    alpha, beta = lanczos.tridiagonal()
    np.testing.assert_allclose(alpha, 2, atol=1e-14)
    np.testing.assert_allclose(beta, 1, atol=1e-14)


JACOBI = [
    (np.polynomial.legendre.leggauss, lambda k: k / np.sqrt(4 * k**2 - 1)),
    (np.polynomial.hermite.hermgauss, lambda k: np.sqrt(k / 2)),
    (np.polynomial.chebyshev.chebgauss, lambda k: np.where(k == 1, np.sqrt(0.5), 0.5)),
]


@pytest.mark.parametrize(("quadrature", "off_diagonal"), JACOBI, ids=["Legendre", "Hermite", "Chebyshev"])
def test_gauss_nodes_and_weights_give_the_recurrence_of_orthogonal_polynomials(quadrature, off_diagonal):
    nodes, weights = quadrature(40)
    alpha, beta = run(diagonal(nodes), 30, start=torch.from_numpy(np.sqrt(weights))).tridiagonal()
    # NumPy's nodes and weights have 12 digits or more.
    np.testing.assert_allclose(alpha, 0, atol=1e-10)
    np.testing.assert_allclose(beta, off_diagonal(np.arange(1, 31)), rtol=1e-9)


def test_a_run_is_a_gauss_quadrature_of_the_start_vectors_measure():
    nodes, weights = np.polynomial.legendre.leggauss(40)
    lanczos = run(diagonal(nodes), 10, start=torch.from_numpy(np.sqrt(weights)))
    pairs = ritz_pairs(*lanczos.tridiagonal())
    expected_nodes, expected_weights = np.polynomial.legendre.leggauss(10)
    np.testing.assert_allclose(pairs.values, expected_nodes, atol=1e-13)
    np.testing.assert_allclose(pairs.weights, expected_weights / 2, atol=1e-13)


def test_residual_bounds_are_the_norms_of_the_residuals():
    matrix = toeplitz(60)
    lanczos = run(matrix, 12)
    pairs = ritz_pairs(*lanczos.tridiagonal())
    ritz_vectors = torch.stack(list(lanczos.basis.subspace(torch.from_numpy(pairs.vectors))))
    residuals = ritz_vectors @ matrix - torch.from_numpy(pairs.values)[:, None] * ritz_vectors
    np.testing.assert_allclose(residuals.norm(dim=1).numpy(), pairs.residuals, atol=1e-13)


# Invariant subspaces -------------------------------------------------------------------------------------------------


def test_a_start_vector_that_is_an_eigenvector_is_a_block_of_its_own():
    lanczos = run(diagonal(torch.arange(1.0, 9.0)), 20, start=torch.eye(8, dtype=torch.float64)[2])
    assert lanczos.starts[:2] == [0, 1]
    assert lanczos.tridiagonal()[0][0] == 3
    assert lanczos.exhausted
    assert len(lanczos) == 8
    assert lanczos.rest == 0


def test_a_start_vector_in_an_invariant_subspace_gives_a_block_of_its_dimension():
    start = torch.zeros(100, dtype=torch.float64)
    start[[4, 50, 97]] = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    lanczos = run(diagonal(torch.arange(100.0)), 10, start=start)
    assert lanczos.starts == [0, 3]
    np.testing.assert_allclose(ritz_pairs(*(part[:3] for part in lanczos.tridiagonal())).values, [4, 50, 97])


@pytest.mark.parametrize("dtype", PRECISIONS)
def test_blocks_together_stay_orthonormal(dtype):
    lanczos = run(diagonal(torch.arange(40.0) % 4, dtype), 40)
    assert len(lanczos.starts) > 5
    assert departure(vectors(lanczos)) <= ORTHONORMAL * torch.finfo(dtype).eps


@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize("value", [0.0, -1.5])
def test_a_multiple_of_the_identity_is_known_after_three_steps(value, dtype):
    operator = diagonal(torch.full((1000,), value), dtype)
    spectrum = hesspec.spectrum(operator, steps=64)
    assert spectrum.exact
    # And the first one again.
    assert spectrum.matvecs == 4
    assert spectrum.trace == pytest.approx(1000 * value)
    assert (np.abs(spectrum.eigenvalues - value) <= spectrum.error_bounds).all()


def test_the_zero_operator_has_no_rounding():
    spectrum = hesspec.spectrum(torch.zeros(7, 7), steps=7)
    assert spectrum.rounding == 0
    assert spectrum.error_bounds.max() == 0
    assert spectrum.num_negative == (0, 0, 0)


@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize("steps", [1, 5])
def test_dimension_one(steps, dtype):
    spectrum = hesspec.spectrum(torch.full((1, 1), -2.5, dtype=dtype), steps=steps)
    assert spectrum.exact
    assert spectrum.matvecs == 2
    assert spectrum.eigenvalues == pytest.approx([-2.5])
    assert spectrum.weights.tolist() == [1]


def test_one_eigenvector_found_at_random_does_not_prove_a_multiple_of_the_identity():
    # The second start vector misses the last eigenvalue by rounding; a third one, that is tried, does not.
    p = 200
    values = torch.zeros(p, dtype=torch.float64)
    values[0], values[1] = 1.0, 1e-13
    lanczos = run(diagonal(values), p)
    assert len(lanczos) - lanczos.starts[-1] == 1
    assert lanczos.starts[-1] - lanczos.starts[-2] == 1


def test_an_exhausted_process_takes_no_further_step():
    lanczos = run(torch.eye(3), 3)
    with pytest.raises(RuntimeError, match="exhausted"):
        lanczos.step(torch.zeros(3))


# Orthonormality ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize("spike", [10.0, 1e4])
def test_basis_stays_orthonormal_over_250_steps_with_converged_spikes(spike, dtype):
    bulk = torch.linspace(-1, 1, 2000)
    lanczos = run(diagonal(torch.cat([bulk, spike * torch.arange(1.0, 11.0)]), dtype), 250)
    assert len(lanczos) == 250
    assert departure(vectors(lanczos)) <= ORTHONORMAL * torch.finfo(dtype).eps


@pytest.mark.parametrize("seed", [13, 35, 76])
def test_basis_stays_orthonormal_where_residuals_are_rounding(seed):
    # A reflection: every block ends after two steps, some a little above the level at which a residual counts as zero.
    # Then a large share of the residual lies along the basis, and what one pass leaves adds up (25 to 34 eps).
    rng = np.random.default_rng(seed)
    basis = np.linalg.qr(rng.standard_normal((240, 240)))[0]
    full = (basis * rng.choice([1.0, -1.0], 240)) @ basis.T
    lanczos = run(torch.from_numpy((full + full.T) / 2), 240)
    assert departure(vectors(lanczos)) <= ORTHONORMAL * torch.finfo(torch.float64).eps


@pytest.mark.parametrize("dtype", PRECISIONS)
def test_backward_error_is_what_the_bounds_assume(dtype):
    rng = np.random.default_rng(0)
    for p in (3, 30, 300):
        full = torch.from_numpy(rng.standard_normal((p, p)))
        matrix = (full + full.T).to(dtype)
        lanczos = run(matrix, p - 1)
        q, m = vectors(lanczos).T, len(lanczos)
        alpha, beta = (torch.from_numpy(part) for part in lanczos.tridiagonal())
        tridiagonal = torch.diag(alpha) + torch.diag(beta[:-1], 1) + torch.diag(beta[:-1], -1)
        error = matrix.double() @ q - q @ tridiagonal
        error[:, -1] -= beta[-1] * lanczos._state.next.double()
        norm = float(torch.linalg.matrix_norm(matrix.double(), 2))
        assert float(torch.linalg.matrix_norm(error, 2)) <= rounding_unit(dtype) * norm * m**0.5


# Deflation -----------------------------------------------------------------------------------------------------------


def basis_of(rows):
    basis = KrylovBasis(Space(rows.shape[1]), dtype=rows.dtype, device=CPU)
    for row in rows:
        basis.append(row)
    return basis


def test_deflated_process_sees_the_complement_only():
    values = torch.arange(1.0, 31.0, dtype=torch.float64)
    deflated = basis_of(torch.eye(30, dtype=torch.float64)[[0, 10, 29]])
    lanczos = run(diagonal(values), 30, deflated=deflated)
    assert lanczos.exhausted
    kept = np.delete(np.arange(1.0, 31.0), [0, 10, 29])
    np.testing.assert_allclose(ritz_pairs(*lanczos.tridiagonal()).values, kept, atol=1e-12)


def test_deflation_does_not_leak_where_zero_is_outside_the_spectrum():
    # Rounding along the deflated vectors, if the recurrence takes it on, grows by polynomials of this spectrum at zero.
    values = torch.arange(1.0, 601.0, dtype=torch.float64) ** -0.5
    first = run(diagonal(values), 48)
    pairs = ritz_pairs(*first.tridiagonal())
    resolved, _ = resolve(pairs, 600, 1e-14)
    deflated = first.basis.subspace(torch.from_numpy(pairs.vectors[:, resolved]))
    second = run(diagonal(values), 100, deflated=deflated)
    overlap = vectors(second) @ torch.stack([deflated[i] for i in range(len(deflated))]).T
    assert float(overlap.abs().max()) <= ORTHONORMAL * torch.finfo(torch.float64).eps
    hesspec.spectrum(diagonal(values), steps=48, probes=4)


# Bad products --------------------------------------------------------------------------------------------------------


def test_an_operator_that_is_not_symmetric_is_refused_with_both_numbers():
    matrix = torch.randn(20, 20, dtype=torch.float64)
    lanczos = Lanczos(torch.ones(20, dtype=torch.float64), torch.Generator(), storage=FULL)
    lanczos.step(matrix @ lanczos.vector)
    with pytest.raises(hesspec.NotSymmetricError) as caught:
        lanczos.step(matrix @ lanczos.vector)
    found = re.search(r"u = q_(\d+) and v = q_(\d+).*u·Av = (\S+) but v·Au = (\S+), ", str(caught.value))
    u, v = (lanczos.basis[int(index) - 1] for index in found.groups()[:2])
    assert float(found[3]) == pytest.approx(float(u @ (matrix @ v)), rel=1e-4)
    assert float(found[4]) == pytest.approx(float(v @ (matrix @ u)), rel=1e-4, abs=1e-12)


def test_asymmetry_near_rounding_widens_the_bounds():
    symmetric = torch.diag(torch.linspace(0, 1, 50))
    skewed = symmetric.clone()
    skewed[0, 1:] += 1e-5
    assert hesspec.spectrum(skewed, steps=20).rounding > 3 * hesspec.spectrum(symmetric, steps=20).rounding


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("when", [1, 4])
def test_a_product_that_is_not_finite_is_refused_naming_the_vector(value, when):
    calls = 0

    def product(vector):
        nonlocal calls
        calls += 1
        image = torch.linspace(1, 2, 30) * vector
        if calls == when:
            image[7] = value
        return image

    with pytest.raises(hesspec.NonFiniteError, match=f"Lanczos vector {when} holds NaN or infinity"):
        hesspec.spectrum(Product(30, product, torch.float32), steps=10)


@pytest.mark.parametrize(
    ("product", "seen"),
    [
        (lambda v: v[:, None], r"\(9, 1\) torch.float32"),
        (lambda v: v[:-1], r"\(8,\) torch.float32"),
        (lambda v: v.double(), r"\(9,\) torch.float64"),
        (lambda v: v.numpy(), "an ndarray"),
    ],
)
def test_a_product_unlike_the_vector_is_refused(product, seen):
    with pytest.raises(ValueError, match=seen):
        hesspec.spectrum(Product(9, product, torch.float32), steps=3)


# Products that are views, buffers or part of a graph -----------------------------------------------------------------


def test_an_operator_may_return_its_argument():
    spectrum = hesspec.spectrum(Product(12, lambda v: v), steps=12)
    assert spectrum.exact
    np.testing.assert_allclose(spectrum.eigenvalues, 1, atol=1e-14)


def same(product, values, steps=20):
    """Whether an operator gives the same spectrum as the plain diagonal one."""
    plain = hesspec.spectrum(diagonal(values), steps=steps)
    other = hesspec.spectrum(Product(len(values), product), steps=steps)
    np.testing.assert_array_equal(other.ritz_values, plain.ritz_values)
    np.testing.assert_array_equal(other.ritz_weights, plain.ritz_weights)


def test_an_operator_may_return_one_buffer_every_time():
    values, buffer = torch.linspace(-1, 3, 50, dtype=torch.float64), torch.empty(50, dtype=torch.float64)
    same(lambda v: torch.mul(values, v, out=buffer), values)


def test_an_operator_may_return_a_strided_view():
    values, wide = torch.linspace(-1, 3, 50, dtype=torch.float64), torch.zeros(50, 3, dtype=torch.float64)

    def product(vector):
        wide[:, 1] = values * vector
        return wide[:, 1]

    same(product, values)


def test_an_operator_may_return_part_of_an_autograd_graph():
    values = torch.linspace(-1, 3, 50, dtype=torch.float64, requires_grad=True)
    same(lambda v: values * v, values.detach())


# Extreme scales ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("exponent", [-200, -300, 200, 300])
def test_numbers_whose_squares_leave_float64_scale_like_any_others(exponent):
    # A power of two, so that the matrix is scaled without rounding; 40 digits of exponent are left on either side.
    scale = 2.0 ** round(exponent / np.log10(2) * 0.9)
    plain = hesspec.spectrum(toeplitz(60), steps=30)
    scaled = hesspec.spectrum(toeplitz(60) * scale, steps=30)
    np.testing.assert_allclose(scaled.ritz_values, plain.ritz_values * scale, rtol=1e-9, atol=1e-12 * scale)
    np.testing.assert_allclose(scaled.error_bounds, plain.error_bounds * scale, rtol=1e-3)
    assert scaled.eigenvalues.size == plain.eigenvalues.size > 0


def test_numbers_that_underflow_in_float32_have_bounds_that_say_so():
    rng = np.random.default_rng(0)
    values = np.concatenate([np.zeros(250), 1e-39 * rng.standard_normal(8)]).astype(np.float32)
    spectrum = hesspec.spectrum(diagonal(values, torch.float32), steps=100)
    assert (np.abs(spectrum.eigenvalues[:, None] - values).min(1) <= spectrum.error_bounds).all()
    # p times the smallest subnormal number, in each step.
    assert spectrum.rounding >= np.finfo(np.float32).smallest_subnormal * 258


# The basis -----------------------------------------------------------------------------------------------------------


def test_a_basis_grows_beyond_a_block_and_ends_with_the_space():
    basis = basis_of(torch.eye(37))
    assert len(basis) == 37
    torch.testing.assert_close(basis[-1], torch.eye(37)[36])
    torch.testing.assert_close(torch.stack(list(basis.subspace(torch.eye(37)[:, 20:23]))), torch.eye(37)[20:23])
    with pytest.raises(IndexError):
        basis[37]


@pytest.mark.parametrize("dtype", PRECISIONS)
def test_orthogonalising_returns_what_was_removed(dtype):
    basis = basis_of(torch.eye(50, dtype=dtype)[:20])
    vector = torch.arange(50.0, dtype=dtype)
    removed = basis.orthogonalise(vector)
    np.testing.assert_array_equal(removed.numpy(), np.arange(20.0))
    np.testing.assert_array_equal(vector.numpy(), np.where(np.arange(50) < 20, 0, np.arange(50)))


@pytest.mark.parametrize("dtype", PRECISIONS)
def test_orthogonalising_a_vector_that_is_nearly_in_the_span_is_exact(dtype):
    eps = torch.finfo(dtype).eps
    rows = torch.linalg.qr(torch.randn(80, 40, dtype=torch.float64))[0].T.to(dtype)
    vector = rows.sum(0) + eps**0.75 * torch.randn(80, dtype=dtype)
    basis = basis_of(rows)
    basis.orthogonalise(vector)
    # Twice is enough: what is left along the span is its departure from orthonormality, not eps over the remainder.
    assert float((rows @ vector).norm() / vector.norm()) <= ORTHONORMAL * eps


# Ritz pairs ----------------------------------------------------------------------------------------------------------


def test_overlapping_intervals_get_the_bound_of_their_cluster():
    # A = [[0, t, 0], [t, 0, b], [0, b, 0]] has the eigenvalues 0 and +-sqrt(t^2 + b^2); two steps from e_1 give +-t
    # with residuals b/sqrt(2). Both single intervals hold 0 alone: no one-to-one pairing; b is enough.
    t, b = 0.1, 1.0
    pairs = ritz_pairs(np.zeros(2), np.array([t, b]))
    np.testing.assert_allclose(pairs.values, [-t, t])
    np.testing.assert_allclose(pairs.residuals, b / np.sqrt(2))
    np.testing.assert_allclose(clustered_bounds(pairs.values, pairs.residuals, 0.0), b)
    assert np.sqrt(t**2 + b**2) - t <= b


def test_separate_intervals_keep_their_own_bounds():
    bounds = clustered_bounds(np.array([3.0, 1.0, 2.0]), np.array([0.1, 0.2, 0.3]), 0.01)
    np.testing.assert_allclose(bounds, [0.11, 0.21, 0.31])


def test_clusters_that_reach_each_other_by_merging_are_merged():
    # 0 and 1 overlap; the cluster's radius sqrt(0.36 + 0.36) = 0.85 reaches 2.2's 0.4, which 1's own 0.6 does not.
    bounds = clustered_bounds(np.array([0.0, 1.0, 2.2]), np.array([0.6, 0.6, 0.4]), 0.0)
    np.testing.assert_allclose(bounds, np.sqrt(0.36 + 0.36 + 0.16))


def test_error_bounds_of_no_eigenvalues():
    assert clustered_bounds(np.empty(0), np.empty(0), 0.1).size == 0
