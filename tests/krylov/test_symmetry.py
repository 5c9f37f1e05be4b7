"""Symmetric operators are measured however little is left of them after deflation; others are refused."""

import numpy as np
import pytest
import torch
from random_operators import operator_of

import hesspec

PRECISIONS = [torch.float32, torch.float64]
BASES = ["full", "half", "restarted"]

RNG = np.random.default_rng(0)
# Little is left after deflation, or few distinct eigenvalues are, so that blocks end at the level of rounding.
KINDS = {
    "graded": np.geomspace(1, 1e-20, 80),
    "graded, two-sided": np.geomspace(1, 1e-12, 80) * RNG.choice([1, -1], 80),
    "low rank": np.r_[5.0, 3.0, -2.0, np.zeros(77)],
    "low rank and identity": np.r_[5.0, 3.0, -2.0, np.ones(77)],
    "reflection": RNG.choice([1.0, -1.0], 80),
    "projection": RNG.choice([1.0, 0.0], 80),
    "two values": np.where(np.arange(80) < 30, 1.0, 1e-3),
    "clusters": RNG.choice([-1.1, -0.2, 0.4, 0.9], 80) + 1e-6 * RNG.standard_normal(80),
    "outliers and rounding": np.r_[9.0, 7.0, 5.0, 1e-15 * RNG.standard_normal(77)],
}


def memory(basis, dtype):
    return {"memory": 20 * 80 * dtype.itemsize} if basis == "restarted" else {}


@pytest.mark.parametrize("basis", BASES)
@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.few(18)
def test_a_symmetric_operator_is_measured_with_any_number_of_probes(kind, dtype, basis):
    for dense in (True, False):
        matrix = operator_of(KINDS[kind], dense=dense, dtype=dtype, scale=1.0, seed=1).matrix
        for probes in (1, 2, 4):
            for seed, steps in enumerate((20, 60)):
                spectrum = hesspec.spectrum(
                    matrix, steps=steps, probes=probes, seed=seed, basis=basis, **memory(basis, dtype)
                )
                assert spectrum.weights.sum() == pytest.approx(1)


def skewed(kind, dtype, size):
    """With a skew-symmetric part of this norm, relative to that of the matrix."""
    matrix = operator_of(KINDS[kind], dense=True, dtype=torch.float64, scale=1.0, seed=1).matrix
    part = torch.randn(80, 80, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    part -= part.T.clone()
    norms = (float(torch.linalg.matrix_norm(each, 2)) for each in (matrix, part))
    return (matrix + size * next(norms) / next(norms) * part).to(dtype)


# Ten times the level beyond which asymmetry is not rounding, the square root of eps; where a basis has half of the
# digits, whose square root that is, as much as it rounds off.
@pytest.mark.parametrize("basis", BASES)
@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_an_operator_that_is_not_symmetric_is_refused(kind, dtype, basis):
    size = (30 if basis == "half" else 10) * torch.finfo(dtype).eps ** 0.5
    for probes in (1, 3):
        with pytest.raises(hesspec.NotSymmetricError, match="The operator is not symmetric: with Lanczos vectors"):
            hesspec.spectrum(skewed(kind, dtype, size), steps=30, probes=probes, basis=basis, **memory(basis, dtype))


@pytest.mark.parametrize("dtype", PRECISIONS)
def test_asymmetry_that_only_later_probes_meet_is_refused(dtype):
    # A matrix that is symmetric until its first probe is done, by the number of its products.
    symmetric, other = skewed("clusters", dtype, 0.0), skewed("clusters", dtype, 0.01)

    class Later:
        shape, device, calls = (80, 80), torch.device("cpu"), 0

        def __matmul__(self, vectors):
            self.calls += 1
            return (symmetric if self.calls <= 12 else other) @ vectors

    Later.dtype = dtype
    with pytest.raises(hesspec.NotSymmetricError):
        hesspec.spectrum(Later(), steps=12, probes=3)
