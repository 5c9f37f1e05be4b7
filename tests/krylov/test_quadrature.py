"""Distances between discrete measures."""

import numpy as np
import pytest
import scipy.stats

from hesspec.krylov.quadrature import wasserstein_distance


@pytest.mark.parametrize("sizes", [(1, 1), (1, 30), (17, 30)])
def test_the_distance_is_that_of_scipy(sizes):
    generator = np.random.default_rng(sum(sizes))
    nodes, weights = ([generator.random(size) for size in sizes] for _ in range(2))
    weights = [each / each.sum() for each in weights]
    expected = scipy.stats.wasserstein_distance(*nodes, *weights)
    assert wasserstein_distance(*nodes, *weights) == pytest.approx(expected, abs=1e-15)


def test_nodes_at_the_same_place_and_equal_measures():
    nodes, weights = np.array([1.0, 2.0, 2.0]), np.array([0.5, 0.25, 0.25])
    assert wasserstein_distance(nodes, np.array([1.0, 2.0]), weights, np.array([0.5, 0.5])) == 0.0
    assert wasserstein_distance(nodes, nodes + 3, weights, weights) == pytest.approx(3.0, abs=1e-15)
