"""Upper bound on the largest eigenvalue from the polynomials of a run, against the truth."""

import numpy as np
import pytest
import torch

from hesspec.krylov.lanczos import Lanczos
from hesspec.krylov.largest import largest_eigenvalue_bound
from hesspec.krylov.storage import Storage

RISK = 1e-3
RANKS = np.arange(1.0, 1001.0)
SPECTRA = {
    "powers": 30 / (29 + RANKS),
    "steep powers": RANKS**-2.0,
    "exponential": np.exp(-RANKS / 50),
    "uniform": 1 - (RANKS - 1) / 1000,
    "isolated": np.append(1.0, 0.1 * RANKS[:-1] / 1000),
    "negative": -RANKS / 1000,
    "copies": np.append(np.ones(5), 0.2 / RANKS[:-5]),
}


def run(values, steps, seed):
    """T after some steps with a diagonal operator, from a random vector."""
    diagonal, generator = torch.as_tensor(values), torch.Generator().manual_seed(seed)
    lanczos = Lanczos(torch.randn(len(diagonal), generator=generator).to(diagonal.dtype), generator, storage=Storage())
    while len(lanczos) < steps and not lanczos.finished and len(lanczos.starts) == 1:
        lanczos.step(diagonal * lanczos.vector)
    alpha, beta = lanczos.tridiagonal()
    return alpha, beta, lanczos.backward_error(len(alpha))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", SPECTRA)
def test_bound_covers_the_largest_eigenvalue(name, dtype):
    values = SPECTRA[name].astype(dtype)
    for seed in range(3):
        before = np.inf
        for steps in (1, 2, 4, 8, 12):
            alpha, beta, rounding = run(values, steps, seed)
            bound = largest_eigenvalue_bound(alpha, beta, 1000, risk=RISK, rounding=rounding)
            assert values.max() <= bound
            # A sum of more polynomials is larger. Rounding grows with the steps.
            assert bound <= before + rounding
            before = bound
        assert bound <= (4 / 3 if name != "negative" else 0.5) * max(values.max(), 1)


def test_risk_is_attained():
    # In two dimensions after one step, u is in the span of the two vectors, where the inequality is an equality.
    risk, count = 0.1, 2000
    below = 0
    for seed in range(count):
        alpha, beta, _ = run(np.array([1.0, 0.0]), 1, seed)
        below += largest_eigenvalue_bound(alpha, beta, 2, risk=risk, rounding=0.0) < 1
    assert abs(below - risk * count) <= 5 * (risk * (1 - risk) * count) ** 0.5


def test_invariant_space_gives_the_largest_ritz_value():
    alpha, beta, rounding = run(np.repeat([3.0, 1.0, 0.5], [10, 10, 400]), 8, 0)
    assert largest_eigenvalue_bound(alpha, beta, 420, risk=RISK, rounding=rounding) == pytest.approx(3, rel=1e-6)
    # The whole space, and an operator that is zero.
    alpha, beta, rounding = run(np.array([2.0, -1.0]), 2, 0)
    assert largest_eigenvalue_bound(alpha, beta, 2, risk=RISK, rounding=rounding) == pytest.approx(2, abs=1e-12)
    assert largest_eigenvalue_bound(np.zeros(1), np.zeros(1), 5, risk=RISK, rounding=1e-9) == 1e-9
    # A residual far below rounding is not trusted, and the sum of the polynomials does not overflow.
    small = largest_eigenvalue_bound(np.array([1.0, 0.1]), np.array([1e-3, 1e-300]), 50, risk=RISK, rounding=1e-6)
    assert 1 <= small <= 1.1
