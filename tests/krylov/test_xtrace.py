"""XTrace on matrices whose traces are known, and against its definition."""

import math

import pytest
import scipy.stats
import torch
from cases import CASES, batches, labels, mlp
from torch import nn

import hesspec
from hesspec.krylov import xtrace as module
from hesspec.krylov.lanczos_state import rounding_unit
from hesspec.krylov.xtrace import TraceEstimate, xtrace

PRECISIONS = [torch.float32, torch.float64]
P, MATVECS = 100, 32
INDEX = torch.arange(P, dtype=torch.float64)
# Spectra that k = 16 test vectors do not exhaust.
SPECTRA = {
    "0.5^j": 0.5**INDEX,
    "0.8^j": 0.8**INDEX,
    "1/j": 1 / (1 + INDEX),
    "1 to 2": torch.linspace(1, 2, P, dtype=torch.float64),
    "-1 to 1": torch.linspace(-1, 1, P, dtype=torch.float64),
    "(-0.8)^j": (-0.8) ** INDEX,
    "outliers": torch.where(INDEX < 8, 100 - INDEX, 0.01 * (1 + INDEX / P)),
}
LOW_RANK = {
    "one": torch.where(INDEX < 1, 7.0, 0.0),
    "five": torch.where(INDEX < 5, 1 + INDEX, 0.0),
    "indefinite": torch.where(INDEX < 10, (-1) ** INDEX * (1 + INDEX), 0.0),
    "k - 1": torch.where(INDEX < 15, 1 + INDEX, 0.0),
}


def matrix(eigenvalues, dtype=torch.float64):
    """Dense, with these eigenvalues up to rounding and vectors that are not aligned with anything."""
    generator = torch.Generator().manual_seed(1)
    p = len(eigenvalues)
    q = torch.linalg.qr(torch.randn(p, p, generator=generator, dtype=torch.float64))[0]
    full = (q * eigenvalues) @ q.T
    return ((full + full.T) / 2).to(dtype)


def trace(dense):
    return float(dense.double().diagonal().sum())


def without(matrix, column):
    return torch.cat([matrix[:, :column], matrix[:, column + 1 :]], 1)


def left_out(dense, omega):
    """Every t_i from the projection that leaves its test vector out, in float64."""
    k, values = omega.shape[1], []
    for i in range(k):
        q = torch.linalg.qr(dense @ without(omega, i))[0]
        mu = omega[:, i] - q @ (q.T @ omega[:, i])
        rest = (len(dense) - (k - 1)) / (mu @ mu) * (mu @ (dense @ mu))
        values.append((q.T @ dense @ q).trace() + rest)
    return torch.stack(values)


def by_definition(dense, k, seed):
    """Value, and standard error from the spread, the jackknife and Student's t."""
    omega = module._test_vectors(dense, len(dense), k, seed).T
    values = left_out(dense, omega)
    variance = float(values.var()) / k
    less = [left_out(dense, without(omega, i)) for i in range(k)]
    means = torch.stack([part.mean() for part in less])
    jackknife = (k - 1) / k * float(((means - means.mean()) ** 2).sum())
    spread = sum(float(part.var()) / (k - 1) for part in less) / k if k > 2 else variance
    inflated = variance * math.sqrt(max(1.0, jackknife / spread))
    return float(values.mean()), math.sqrt(inflated) * scipy.stats.t.ppf(0.975, (k + 2) / 7) / 2


@pytest.mark.parametrize("matvecs", [4, 5, 8, 32, 33])
@pytest.mark.parametrize("name", SPECTRA)
def test_value_and_error_are_those_of_the_definition(name, matvecs):
    dense = matrix(SPECTRA[name])
    value, error = by_definition(dense, matvecs // 2, 3)
    found = xtrace(dense, matvecs, 3)
    size = float(SPECTRA[name].abs().sum())
    assert found.matvecs == matvecs // 2 * 2
    # Each t_i is a sum that cancels to rounding of the largest entries; the QR of Y, whose condition number is below
    # 1e6 here, moves a projection by 1e6 eps.
    assert found.value == pytest.approx(value, abs=1e-10 * size)
    assert found.standard_error == pytest.approx(error, abs=1e-10 * size)


# Exact answers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize("name", LOW_RANK)
def test_a_low_rank_has_its_exact_trace_and_says_so(name, dtype):
    dense = matrix(LOW_RANK[name], dtype)
    rank, norm = int((LOW_RANK[name] != 0).sum()), float(LOW_RANK[name].abs().max())
    for seed in range(10):
        found = xtrace(dense, MATVECS, seed)
        # Rounding of the matrix itself adds a tail of eps ||A||, which may count as rank.
        assert MATVECS // 2 + rank <= found.matvecs <= MATVECS
        assert abs(found.value - trace(dense)) <= 4 * found.standard_error
        # Backward errors of that many eigenvalues, of the tail, and those that the tail is inferred with.
        assert found.standard_error <= 3 * rounding_unit(dtype) * math.sqrt(MATVECS // 2) * norm


@pytest.mark.parametrize("dtype", PRECISIONS)
def test_nothing_has_the_trace_nothing(dtype):
    assert xtrace(torch.zeros(50, 50, dtype=dtype)) == TraceEstimate(0.0, 0.0, 16)


@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize("scale", [1.0, -3.0])
def test_a_multiple_of_the_identity_is_exact(scale, dtype):
    # Lengths are normalised: every test vector gives the same answer.
    found = xtrace(scale * torch.eye(P, dtype=dtype), MATVECS)
    assert abs(found.value - scale * P) <= 4 * found.standard_error
    assert found.standard_error <= 2 * rounding_unit(dtype) * abs(scale) * P


@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize("p", [1, 2, 3, 15, 16, 17, 31, 32])
def test_from_p_products_on_the_diagonal_is_read_off(p, dtype):
    dense = matrix(torch.linspace(-1, 3, p, dtype=torch.float64), dtype)
    found = xtrace(dense, 32)
    assert found.matvecs == p
    assert abs(found.value - trace(dense)) <= found.standard_error
    assert found.standard_error <= rounding_unit(dtype) * math.sqrt(p) * 3 * (1 + 1e-6)


def test_a_power_of_two_scales_everything_exactly():
    dense = matrix(SPECTRA["0.8^j"])
    found = xtrace(dense)
    for power in (-400, 400):
        scaled = xtrace(dense * 2.0**power)
        assert (scaled.value, scaled.standard_error) == (
            found.value * 2.0**power,
            found.standard_error * 2.0**power,
        )


# Statistics -----------------------------------------------------------------------------------------------------------


def runs(name, dtype, seeds):
    """Errors and standard errors, (seeds,) each."""
    dense = matrix(SPECTRA[name], dtype)
    found = [xtrace(dense, MATVECS, seed) for seed in range(seeds)]
    return (
        torch.tensor([one.value - trace(dense) for one in found], dtype=torch.float64),
        torch.tensor([one.standard_error for one in found], dtype=torch.float64),
    )


@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.few(5)
def test_errors_are_honest_and_have_no_bias(name, dtype):
    seeds = 100
    errors, standard = runs(name, dtype, seeds)
    # Two standard errors are meant for 95%; more than 12 of 100 are beyond with a probability of 4e-3, and by how much
    # the statement holds is in benchmarks/coverage.py.
    assert (errors.abs() > 2 * standard).sum() <= 12
    assert (errors.abs() > 4 * standard).sum() <= 4
    # What makes two of them 95% makes them larger than the root mean square of errors, but not by much.
    assert 0.4 <= errors.square().mean().sqrt() / standard.square().mean().sqrt() <= 1.2
    # Five standard errors of the mean: 6e-7 if it is normal.
    assert errors.mean().abs() <= 5 * errors.std() / math.sqrt(seeds)


@pytest.mark.parametrize("k", [2, 3, 4, 6, 8, 16, 32, 64, 128])
def test_intervals_hold_where_one_eigenvalue_decides(k):
    """Means of squares of normal numbers, which t_i are for the identity and one more eigenvalue."""
    drawn = torch.randn(20_000, k, dtype=torch.float64, generator=torch.Generator().manual_seed(k)) ** 2
    student = (drawn.mean(1) - 1).abs() / (drawn.std(1) / math.sqrt(k))
    # 0.95 less three standard deviations of the share of 20,000, or 0.94 where no simple rule does it.
    assert 0.935 <= float((student <= scipy.stats.t.ppf(0.975, module._freedom(k))).double().mean()) <= 0.985


@pytest.mark.parametrize("matvecs", [4, 8, 32])
@pytest.mark.parametrize("more", [(5.0,), (5.0, -3.0), (4.0, 1.0, 0.1)], ids=str)
@pytest.mark.few(3)
def test_intervals_hold_for_the_identity_and_a_low_rank(more, matvecs):
    eigenvalues = torch.ones(P, dtype=torch.float64)
    eigenvalues[: len(more)] += torch.tensor(more)
    operator, within = matrix(eigenvalues), 0
    for seed in range(200):
        found = xtrace(operator, matvecs, seed)
        within += abs(found.value - trace(operator)) <= 2 * found.standard_error
    # 95%, of which fewer than 92% are three standard deviations (of the rounded 1%) away at most in a fair draw.
    assert within >= 0.92 * 200


@pytest.mark.parametrize("dtype", PRECISIONS)
def test_a_decaying_spectrum_is_known_far_better_than_by_hutchinson(dtype):
    eigenvalues = SPECTRA["0.5^j"]
    errors, _ = runs("0.5^j", dtype, 50)
    found = errors.square().mean().sqrt()
    # Hutchinson with as many vectors on the sphere: 2 p / (p + 2) (||A||_F^2 - tr(A)^2 / p) / m.
    variance = 2 * P / (P + 2) * (eigenvalues.square().sum() - eigenvalues.sum() ** 2 / P)
    hutchinson = (variance / MATVECS).sqrt()
    # That of one t_i is below 2 E ||(I - P_i) A||_F^2, which is at most (1 + r / (k - r - 2)) times the squares of all
    # eigenvalues beyond any r (Halko, Martinsson and Tropp 2011, theorem 10.5, with k - 1 vectors); that of their mean
    # is no larger.
    k = MATVECS // 2
    bounds = [2 * (1 + r / (k - r - 2)) * eigenvalues[r:].square().sum() for r in range(k - 2)]
    bound = torch.stack(bounds).min().sqrt()
    # The root mean square of 50 errors is known to some 20 %.
    assert found <= 1.6 * bound
    assert 50 * bound < hutchinson


def test_a_seed_decides():
    dense = matrix(SPECTRA["1/j"])
    assert xtrace(dense, 16, 5) == xtrace(dense, 16, 5)
    assert xtrace(dense, 16, 5).value != xtrace(dense, 16, 6).value


# Operators and arguments ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["Hessian", "GaussNewton", "Residual"])
@pytest.mark.parametrize("dtype", PRECISIONS)
def test_operators_of_networks(kind, dtype):
    case = CASES["mlp"]().to(dtype)
    operator = getattr(hesspec, kind)(case.model, case.loss, case.data)
    truth = trace(operator @ torch.eye(operator.shape[0], dtype=dtype))
    before = operator.matvecs
    for seed in range(3):
        found = xtrace(operator, 32, seed)
        assert abs(found.value - truth) <= 4 * found.standard_error
    assert operator.matvecs - before == 3 * 32


def test_a_gauss_newton_matrix_of_few_samples_is_exact():
    # 3 samples with 4 classes each: rank 9 at most, 15 being the most that 16 test vectors hold.
    data = batches((5,), labels(4), sizes=(2, 1))
    operator = hesspec.GaussNewton(mlp().double(), nn.CrossEntropyLoss(), data)
    truth = trace(operator @ torch.eye(operator.shape[0], dtype=torch.float64))
    found = xtrace(operator, 32)
    assert found.value == pytest.approx(truth, rel=1e-13)
    assert found.standard_error <= 1e-13 * truth


class Recording:
    """A diagonal operator that keeps the shapes of what it is multiplied with."""

    def __init__(self, diagonal):
        self.diagonal, self.shapes = diagonal, []
        self.shape, self.dtype, self.device = (len(diagonal),) * 2, diagonal.dtype, diagonal.device

    def __matmul__(self, vectors):
        """Column by column."""
        self.shapes.append(tuple(vectors.shape))
        return self.diagonal[:, None] * vectors


def test_products_come_in_two_blocks():
    operator = Recording(SPECTRA["1/j"])
    assert xtrace(operator, 20).matvecs == 20
    assert operator.shapes == [(P, 10), (P, 10)]


def test_a_diagonal_is_read_off_in_blocks_no_wider():
    operator = Recording(torch.arange(1.0, 11.0))
    assert xtrace(operator, 12).value == 55
    assert operator.shapes == [(10, 6), (10, 4)]


def test_long_vectors_go_in_chunks(monkeypatch):
    dense = matrix(SPECTRA["1/j"])
    whole = xtrace(dense)
    monkeypatch.setattr(module, "CHUNK", 7)
    found = xtrace(dense)
    assert found.value == pytest.approx(whole.value, rel=1e-12)
    assert found.standard_error == pytest.approx(whole.standard_error, rel=1e-10)


@pytest.mark.parametrize("matvecs", [3, 0, -4, 8.0, "auto", None])
def test_bad_matvecs_are_refused_with_their_value(matvecs):
    with pytest.raises(ValueError, match=f"matvecs is {matvecs!r}; it must be an integer of at least 4"):
        xtrace(torch.eye(3), matvecs)


def test_what_is_no_operator_is_refused():
    with pytest.raises(ValueError, match=r"has shape \(3, 4\)"):
        xtrace(torch.zeros(3, 4))


@pytest.mark.parametrize("p", [20, 50])
def test_products_that_are_not_finite_are_refused(p):
    with pytest.raises(hesspec.NonFiniteError, match="contains NaN or infinity; its trace cannot be estimated"):
        xtrace(torch.full((p, p), torch.inf))
