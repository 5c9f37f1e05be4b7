"""Low-rank posteriors of dense matrices: what they cost, and their bounds against the truth."""

import pytest
import torch

from hesspec.applications.laplace.jacobian import products_of_rows
from hesspec.applications.laplace.low_rank import low_rank

P, STEPS = 300, 40
RANKS = torch.arange(1, P + 1, dtype=torch.float64)
TAILS = {
    "powers": 1 / RANKS,
    "steep powers": RANKS**-2,
    "exponential": torch.exp(-RANKS / 15),
    "outliers": torch.cat([torch.linspace(10, 1, 10, dtype=torch.float64), 0.1 / RANKS[:-10]]),
}
SPECTRA = TAILS | {
    "clusters": torch.cat([1 + 1e-6 * RANKS[:5], 0.5 + 1e-4 * RANKS[:5], 0.2 + 1e-2 * RANKS[:5], 0.01 / RANKS[:285]]),
    "copies": torch.cat([torch.ones(4), torch.full((3,), 0.3), 0.05 / RANKS[:293]]).double(),
    "triples": torch.repeat_interleave(torch.logspace(0, -3, 100, dtype=torch.float64), 3),
    "uniform": RANKS / P,
    "low rank": torch.cat([RANKS[:7], torch.zeros(293)]),
    "identity": torch.ones(P, dtype=torch.float64),
}


class Counting:
    """A dense operator that counts products."""

    def __init__(self, values, dtype):
        turn = torch.linalg.qr(torch.randn(P, P, dtype=torch.float64, generator=torch.Generator().manual_seed(1)))[0]
        matrix = ((turn * values) @ turn.T).to(dtype)
        self.matrix, self.shape, self.dtype, self.device = (matrix + matrix.T) / 2, (P, P), dtype, matrix.device
        self.products = 0

    def __matmul__(self, vectors):
        self.products += 1 if vectors.dim() == 1 else vectors.shape[1]
        return self.matrix @ vectors


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", SPECTRA)
def test_bounds_cover_the_truth(name, dtype):
    operator = Counting(SPECTRA[name], dtype)
    exact, eye = operator.matrix.double(), torch.eye(P, dtype=torch.float64)
    for rank in (5, 60):
        before = operator.products
        pairs = low_rank(operator, rank=rank, steps=STEPS, seed=0)
        assert operator.products - before == pairs.matvecs
        vectors, count = pairs.vectors.double(), len(pairs.values)
        assert 0 < count <= rank
        assert (pairs.values.diff() <= 0).all()
        left = exact - vectors @ (vectors.T @ exact)
        left = left - (left @ vectors) @ vectors.T
        slack = 100 * torch.finfo(torch.float64).eps * float(exact.norm())
        assert torch.linalg.matrix_norm(left, 2) <= pairs.rest + slack
        residual = exact @ vectors - vectors * pairs.values
        assert torch.linalg.matrix_norm(residual, 2) <= pairs.residual_norm * (1 + 1e-9) + slack
        assert torch.linalg.matrix_norm(residual, "nuc") <= pairs.residual_sum * (1 + 1e-9) + slack
        columns = pairs.residuals * (1 + 1e-9) + pairs.rounding + slack
        assert (residual.norm(dim=0) <= columns).all()
        # The product with the rest is that of the probe.
        assert (pairs.product.double() - left @ pairs.probe.double()).norm() <= (
            20 * torch.finfo(dtype).eps * pairs.spectrum.norm + 1e-3 * pairs.rest
        ) * P**0.5
        for prior in (1e-3, 0.1, 10.0):
            psi = torch.linalg.inv(exact + prior * eye)
            shares = pairs.values / (pairs.values + prior)
            low = (eye - (vectors * shares) @ vectors.T) / prior
            # The bound is that of orthonormal vectors: they are so up to rounding.
            rounding = 40 * torch.finfo(dtype).eps / prior + slack / prior**2
            bound = pairs.rest_error(1.0, prior) + pairs.residual_error(1.0, prior)
            assert torch.linalg.matrix_norm(low - psi, 2) <= bound * (1 + 1e-9) + rounding


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", TAILS)
def test_a_posterior_takes_twelve_products_beyond_the_run(name, dtype):
    for seed in range(3):
        pairs = low_rank(Counting(TAILS[name], dtype), rank=60, steps=STEPS, seed=seed)
        assert pairs.spectrum.matvecs == STEPS + 1
        assert pairs.matvecs <= STEPS + 12
        largest = float(TAILS[name].sort(descending=True).values[len(pairs.values)])
        assert pairs.rest <= 1.4 * largest


def test_copies_are_found_with_a_product_for_each():
    pairs = low_rank(Counting(SPECTRA["copies"], torch.float64), rank=60, steps=STEPS, seed=0)
    few = low_rank(Counting(SPECTRA["low rank"], torch.float32), rank=7, steps=STEPS, seed=0)
    assert (pairs.values[:1] - 1).abs() <= 1e-9
    # The largest and its copies are above the smallest that the run resolves.
    assert int((pairs.values > 0.99).sum()) == 4
    assert int((pairs.values.sub(0.3).abs() < 1e-3).sum()) == 3
    assert len(few.values) == 7
    assert few.rest <= 1e-4


def test_products_with_long_rows_are_accurate():
    # Sums of millions of float32 numbers of one sign: in one matrix product, the Gram matrix of ResNet18's Jacobian was
    # wrong by 0.2%. Chunks of 2^16 numbers are summed in float32, and their sums in float64.
    rows = torch.rand(2, 1 << 22, generator=torch.Generator().manual_seed(0))
    gram, seen = products_of_rows(rows, rows.T.contiguous())
    truth = rows.double() @ rows.double().T
    assert (gram / truth - 1).abs().max() <= 2e-5
    assert (seen / truth - 1).abs().max() <= 2e-5
    assert gram.dtype == seen.dtype == torch.float64
