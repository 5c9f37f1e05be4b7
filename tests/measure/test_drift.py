"""Operators that are not one fixed matrix: the first vector is multiplied once more, at the end."""

import numpy as np
import pytest
import torch
from random_operators import Diagonal, paired

import hesspec

PRECISIONS = [torch.float32, torch.float64]
BASES = ["full", "half", "restarted"]


def spread(p: int) -> np.ndarray:
    return np.concatenate([np.linspace(-1, 1, p - 3), [5.0, 7.0, -9.0]])


class Drifting(Diagonal):
    """diag(values), times 1 + drift t in the t-th product: symmetric at all times."""

    def __init__(self, values, dtype, drift):
        super().__init__(values, dtype)
        self.drift, self.calls = drift, 0

    def __matmul__(self, vectors):
        """As at this time."""
        self.calls += 1
        return super().__matmul__(vectors) * (1 + self.drift * self.calls)


class Switching(Diagonal):
    """Another matrix from a certain product on, as after a change of the model's mode."""

    def __init__(self, values, dtype, when):
        super().__init__(values, dtype)
        self.when, self.calls = when, 0

    def __matmul__(self, vectors):
        """By one matrix, or by the other."""
        self.calls += 1
        product = super().__matmul__(vectors)
        return product if self.calls < self.when else 1.5 * product


class Noisy(Diagonal):
    """diag(values) with entries drawn again for each product, as of a model with dropout."""

    def __init__(self, values, dtype):
        super().__init__(values, dtype)
        self.generator = torch.Generator().manual_seed(0)

    def __matmul__(self, vectors):
        """With numbers of its own."""
        kept = torch.rand(len(self.values), generator=self.generator) < 0.9
        return super().__matmul__(vectors) * (kept if vectors.dim() == 1 else kept[:, None])


def memory(basis, p, dtype):
    return {"memory": 20 * p * dtype.itemsize} if basis == "restarted" else {}


@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize("basis", BASES)
@pytest.mark.parametrize("probes", [1, 2])
def test_an_operator_that_drifts_is_refused(basis, probes, dtype):
    # By more than eps^0.4 in all, so little in a step that symmetry looks right.
    drift = {torch.float32: 3e-4, torch.float64: 1.6e-8}[dtype]
    operator = Drifting(spread(200), dtype, drift)
    with pytest.raises(ValueError, match=r"not one fixed matrix: its product with the first Lanczos vector.* again"):
        hesspec.spectrum(operator, steps=40, probes=probes, basis=basis, **memory(basis, 200, dtype))


@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize(("when", "match"), [(20, "not symmetric"), (21, "not one fixed matrix")])
def test_a_matrix_that_changes_near_the_end_is_refused(dtype, when, match):
    # By a factor: the last of the steps is not symmetric with those before, and after it comes the product at the end.
    with pytest.raises(ValueError, match=match):
        hesspec.spectrum(Switching(spread(200), dtype, when), steps=20)


@pytest.mark.parametrize("p", [3, 20])
@pytest.mark.parametrize("dtype", PRECISIONS)
def test_so_is_one_whose_spectrum_would_be_exact(dtype, p):
    with pytest.raises(ValueError, match=r"not one fixed matrix|not symmetric"):
        hesspec.spectrum(Drifting(np.linspace(1, 2, p), dtype, 0.01), steps=p)


@pytest.mark.parametrize("dtype", PRECISIONS)
def test_a_multiple_of_the_identity_that_drifts_is_refused(dtype):
    with pytest.raises(ValueError, match="not one fixed matrix"):
        hesspec.spectrum(Drifting(np.ones(50), dtype, 0.01))


@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize("basis", BASES)
def test_an_operator_with_random_numbers_in_it_is_refused(basis, dtype):
    for steps in (1, 3, 30):
        with pytest.raises(ValueError, match=r"not one fixed matrix|not symmetric"):
            hesspec.spectrum(Noisy(spread(200), dtype), steps=steps, basis=basis, **memory(basis, 200, dtype))


@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize("basis", BASES)
def test_a_drift_too_small_to_tell_is_in_the_bounds(basis, dtype):
    drift = {torch.float32: 2e-6, torch.float64: 1e-10}[dtype]
    operator = Drifting(spread(200), dtype, drift)
    still, moved = (
        hesspec.spectrum(each, steps=40, basis=basis, **memory(basis, 200, dtype))
        for each in (Diagonal(spread(200), dtype), operator)
    )
    # The matrix of any product is as good as that of any other.
    for time in (1, operator.calls):
        assert paired(moved.eigenvalues, moved.error_bounds, spread(200) * (1 + drift * time))
    assert moved.rounding > 3 * still.rounding


@pytest.mark.parametrize("basis", BASES)
@pytest.mark.parametrize("probes", [1, 3])
def test_that_is_one_product_whatever_the_run(basis, probes):
    operator = Drifting(spread(200), torch.float64, 0.0)
    seen = []
    spectrum = hesspec.spectrum(
        operator,
        steps=30,
        probes=probes,
        basis=basis,
        on_step=lambda done, total: seen.append(done),
        **memory(basis, 200, torch.float64),
    )
    assert spectrum.matvecs == seen[-1] + 1
    assert spectrum.rounding == hesspec.spectrum(
        Diagonal(spread(200), torch.float64), steps=30, probes=probes, basis=basis, **memory(basis, 200, torch.float64)
    ).rounding  # fmt: skip


@pytest.mark.parametrize("dtype", PRECISIONS)
def test_what_is_known_of_the_errors_of_products_explains_that_they_differ(dtype):
    class Rounded(Diagonal):
        """Rounds its products at random to a few digits, and knows what they would be."""

        def __init__(self, values, dtype):
            super().__init__(values, dtype)
            self.reference, self.generator = Diagonal(values, dtype), torch.Generator().manual_seed(0)

        def __matmul__(self, vectors):
            """To 1%."""
            product = super().__matmul__(vectors)
            noise = torch.randn(product.shape, generator=self.generator, dtype=torch.float64).to(product.dtype)
            return product + 0.01 * product.norm() / len(product) ** 0.5 * noise

    spectrum = hesspec.spectrum(Rounded(spread(200), dtype), steps=20)
    assert paired(spectrum.eigenvalues, spectrum.error_bounds, spread(200))
    assert spectrum.rounding > 0.01 * spectrum.norm


def test_products_that_agree_to_rounding_are_one_matrix():
    class Reordered(Diagonal):
        """Sums in another order in each product, as with atomic additions."""

        def __init__(self, matrix):
            super().__init__(np.ones(len(matrix)), matrix.dtype)
            self.matrix, self.generator = matrix, torch.Generator().manual_seed(0)

        def __matmul__(self, vectors):
            """The same sums."""
            order = torch.randperm(len(self.matrix), generator=self.generator)
            return self.matrix[:, order] @ vectors[order]

    full = torch.randn(200, 200, generator=torch.Generator().manual_seed(1))
    matrix = full + full.T
    fixed, reordered = hesspec.spectrum(matrix, steps=30), hesspec.spectrum(Reordered(matrix), steps=30)
    assert reordered.rounding == pytest.approx(fixed.rounding, rel=0.5)
