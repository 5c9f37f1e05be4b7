"""Which resolved eigenvalues count as outliers."""

import numpy as np
import pytest

from hesspec.spectra.outliers import outlier_mask


def outliers(values, edges, bounds=0.0, dimension=1000):
    values = np.array(values, float)
    return values[outlier_mask(values, np.full(values.size, bounds), edges, dimension)].tolist()


def test_a_gap_above_the_bulk_makes_outliers():
    assert outliers([9, 5, 3, 1.1, 1.0], (-0.5, 0.95)) == [9, 5, 3]


def test_the_innermost_gap_counts():
    assert outliers([9, 2, 1.9, 1.8, 1.1, 1.05], (-0.5, 1.0)) == [9, 2, 1.9, 1.8]


def test_a_bulk_without_gap_has_no_outliers():
    assert outliers([1.3, 1.2, 1.1], (-1.0, 1.05)) == []


def test_both_sides_of_zero_are_looked_at_by_themselves():
    assert outliers([9, -7, -1.0, 1.0], (-0.9, 0.95)) == [9, -7]


def test_order_does_not_matter():
    assert outliers([1.0, 5, 1.1, 9], (-0.5, 0.95)) == [5, 9]


def test_a_gap_within_the_error_bounds_is_none():
    assert outliers([1.4, 1.0], (-0.5, 0.95), bounds=0.1) == []
    assert outliers([1.4, 1.0], (-0.5, 0.95), bounds=0.01) == [1.4]


def test_without_any_resolved_eigenvalue_there_is_none():
    assert outliers([], (-1.0, 1.0)) == []


def test_everything_above_an_empty_side_is_an_outlier():
    assert outliers([3, 2.9], (0.0, 0.0)) == [3, 2.9]


def test_at_most_half_of_the_eigenvalues_are_outliers():
    # A whole spectrum, known exactly, with gaps everywhere: the small half is the bulk.
    assert outliers([16, 8, 4, 2], (0.0, 0.0), dimension=4) == [16, 8]


@pytest.mark.parametrize("exponent", [0.5, 1.0, 2.0])
def test_a_power_law_tail_has_no_gap_beyond_rank_four_times_its_exponent(exponent):
    ranks = np.arange(1, 200)
    assert len(outliers(ranks**-exponent, (-1e-3, 200.0**-exponent))) <= 4 * exponent
