"""Principal angles between eigenspaces, and their bounds, against exact eigenvectors."""

from functools import cache

import numpy as np
import pytest
import torch
from saved_results import check_refused, check_saved

import hesspec

angles_of = hesspec.principal_angles
P = 120


def rotation(seed, size):
    """A random rotation of R^P by angles of about `size`."""
    noise = torch.randn(P, P, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return torch.linalg.matrix_exp(size * (noise - noise.T) / P**0.5)


def matrix(values, turn=None):
    full = torch.cat([torch.tensor(values, dtype=torch.float64), torch.linspace(-0.5, 0.5, P - len(values)).double()])
    return torch.diag(full) if turn is None else turn @ torch.diag(full) @ turn.T


VALUES = [9.0, 7.0, -6.0, 5.0, 4.95]


@cache
def pairs(seed=None, steps=60, dtype=torch.float64):
    operator = matrix(VALUES, None if seed is None else rotation(seed, 0.4))
    return hesspec.eigenpairs(operator.to(dtype), count=5, steps=steps)


def true_cosines(seed, count):
    return torch.linalg.svdvals(rotation(seed, 0.4)[:count, :count]).numpy()


def test_planes_of_the_page_have_these_cosines():
    # span(e1, e2), and span(cos .3 e1 + sin .3 e3, cos 1.1 e2 + sin 1.1 e4).
    turn = torch.eye(P, dtype=torch.float64)
    for (i, j), angle in (((0, 2), 0.3), ((1, 3), 1.1)):
        c, s = np.cos(angle), np.sin(angle)
        turn[i, i], turn[j, i], turn[i, j], turn[j, j] = c, s, -s, c
    first, second = (hesspec.eigenpairs(matrix([9.0, 7.0], t), count=2, steps=60) for t in (None, turn))
    found = angles_of(first, second)
    np.testing.assert_allclose(found.cosines, [np.cos(0.3), np.cos(1.1)], atol=1e-9)
    np.testing.assert_allclose(found.cosines, [0.9553, 0.4536], atol=5e-5)
    np.testing.assert_allclose(found.angles, [0.3, 1.1], atol=1e-9)
    assert found.high[0] - found.low[0] < 1e-6


@pytest.mark.parametrize("steps", [22, 30, 60])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_bounds_contain_the_angles_of_exact_eigenspaces(steps, dtype):
    for seed in range(4):
        first, second = pairs(None, steps, dtype), pairs(seed, steps, dtype)
        most = min(first.values.size, second.values.size)
        for count in range(1, most + 1):
            found = angles_of(first, second, count)
            true = true_cosines(seed, count)
            assert (found.low <= true + 1e-12).all()
            assert (true <= found.high + 1e-12).all()
            assert found.cosines.size == count
    assert most >= (5 if steps > 22 else 2)


def test_errors_of_spaces_bound_the_true_ones_and_need_no_gaps_within():
    first = pairs(None, 26)
    for count in range(1, first.values.size + 1):
        found = angles_of(first, first, count)
        basis = torch.linalg.qr(first.vectors[:, :count])[0]
        sine = float(basis[count:].norm(2)) if count < P else 0.0
        assert sine <= found.first_error == found.second_error
    # 5 and 4.95 are close to each other and far from all others: the vectors are not known, but their space is.
    assert first.values.size == 5
    assert first.vector_errors[3:].max() > 20 * found.first_error


def test_a_multiple_eigenvalue_gives_no_information():
    operator = matrix([9.0] * 30 + [5.0])
    found = hesspec.eigenpairs(operator, count=1, steps=40)
    assert found.vector_errors[0] == 1
    angles = angles_of(found, found)
    assert angles.first_error == pytest.approx(1, rel=1e-14)
    assert (angles.low[0], angles.high[0]) == (0, 1)


def test_a_result_is_saved_shown_and_drawn(tmp_path):
    found = angles_of(pairs(None), pairs(0))
    check_saved(found, tmp_path)
    assert "mean squared cosine" in str(found)
    assert found.overlap == pytest.approx((true_cosines(0, 5) ** 2).mean(), abs=1e-8)
    axes = found.plot().axes[0]
    assert axes.get_ylim()[0] == 0
    np.testing.assert_array_equal(axes.get_lines()[0].get_ydata(), found.cosines)
    other = found.plot(ax=axes, color="black", label="again")
    assert len(other.axes[0].get_lines()) == 2


@pytest.mark.parametrize(
    ("change", "words"),
    [({"low": np.full(5, 1.0)}, "outside of their bounds"), ({"first_error": -1.0}, "at least 0")],
)
def test_impossible_values_are_not_read(change, words):
    check_refused(angles_of(pairs(None), pairs(0)), words, **change)


def test_bad_input_is_answered_with_a_sentence():
    small = hesspec.eigenpairs(torch.diag(torch.arange(10.0)), count=2, steps=10)
    with pytest.raises(ValueError, match="of 120 and 10 parameters"):
        angles_of(pairs(None), small)
    with pytest.raises(ValueError, match="count is 6, but only 5 and 5"):
        angles_of(pairs(None), pairs(0), 6)
    with pytest.raises(ValueError, match="count is 0; it must be"):
        angles_of(pairs(None), pairs(0), 0)
