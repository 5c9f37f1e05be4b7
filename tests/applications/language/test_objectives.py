"""Objectives at the same weights against dense matrices; the spiked law of rewards; results as files."""

import numpy as np
import pytest
import torch
from saved_results import check_refused, check_saved
from torch import nn

import hesspec
from hesspec import language
from hesspec.spectra.spiked import spiked_outlier

CE, BCE = nn.CrossEntropyLoss(), nn.BCEWithLogitsLoss()


def objectives():
    torch.manual_seed(0)
    backbone = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 5), nn.Tanh()).double()
    good, bad = torch.randn(2, 12, 4, dtype=torch.float64)
    value = language.ValueHead(backbone, 5)
    binary = [(x, y.double()) for x, y in language.labelled(good, bad, 24)]
    imitation = nn.Sequential(backbone, nn.Linear(5, 7)).double()
    return backbone, {
        "imitation": (imitation, CE, [(good, torch.arange(12) % 7)]),
        "binary": (value, BCE, binary),
        "ranked": (language.Pairwise(value), CE, language.pairs(good, bad)),
    }


@pytest.fixture(scope="module")
def compared():
    backbone, given = objectives()
    return backbone, given, language.compare_objectives(given, params=backbone, count=3, steps=70)


def test_spectra_and_angles_are_those_of_the_dense_matrices(compared):
    backbone, given, found = compared
    spaces = {}
    for row, (name, kind) in enumerate(zip(found.objective, found.matrix, strict=True)):
        model, loss_fn, data = given[str(name)]
        matrix = getattr(hesspec, str(kind))(model, loss_fn, data, params=backbone)
        dense = matrix @ torch.eye(matrix.shape[0]).double()
        values, vectors = torch.linalg.eigh((dense + dense.T) / 2)
        order = values.abs().argsort(descending=True)
        spaces[name, kind] = vectors[:, order[:3]]
        assert found.traces[row] == pytest.approx(float(dense.trace()), rel=1e-8)
        expected = float(values.abs().sum() / values.abs().max())
        assert found.effective_ranks[row] == pytest.approx(expected, rel=1e-6)
        np.testing.assert_allclose(found.eigenvalues[row], values[order[:3]], rtol=1e-8)
    assert found.dimension == sum(value.numel() for value in backbone.parameters())
    assert found.objectives == ["imitation", "binary", "ranked"]
    for place, pair in enumerate(zip(found.first, found.second, found.pair_matrix, strict=True)):
        one, other, kind = pair
        cosines = torch.linalg.svdvals(spaces[one, kind].T @ spaces[other, kind]).numpy()
        np.testing.assert_allclose(found.cosines[place], cosines, atol=1e-6)
        assert found.overlaps[place] == pytest.approx((cosines**2).mean(), abs=1e-6)
    assert len(found.first) == 6


def test_angles_are_those_of_principal_angles(compared):
    backbone, given, found = compared
    first, second = (
        hesspec.eigenpairs(hesspec.GaussNewton(*given[name], params=backbone), count=3, steps=70)
        for name in ("imitation", "ranked")
    )
    place = next(i for i in range(6) if (found.first[i], found.second[i]) == ("imitation", "ranked"))
    angles = hesspec.principal_angles(first, second)
    np.testing.assert_allclose(angles.cosines, found.cosines[place], rtol=1e-12)
    np.testing.assert_allclose(angles.low, found.low[place], atol=1e-9)


def test_a_comparison_is_saved_shown_and_drawn(compared, tmp_path):
    _, _, found = compared
    check_saved(found, tmp_path)
    assert "imitation and ranked" in str(found)
    left, right = found.plot().axes
    assert left.get_yscale() == "log"
    assert len(right.get_lines()) == 3
    check_refused(found, "outside of their bounds", low=found.cosines + 1)


def test_spaces_that_are_not_known_have_no_angles():
    backbone, given = objectives()
    found = language.compare_objectives(given, params=backbone, matrices=["GaussNewton"], count=3, steps=3)
    assert np.isnan(found.cosines).all()
    assert np.isnan(found.overlaps).all()
    assert "not known" in str(found)
    found.plot()


def test_objectives_that_share_no_weights_are_refused():
    backbone, given = objectives()
    with pytest.raises(ValueError, match="'imitation' and 'binary' are not the same tensors"):
        language.compare_objectives(given)
    with pytest.raises(ValueError, match="matrices is"):
        language.compare_objectives(given, params=backbone, matrices=["Fisher"])
    with pytest.raises(ValueError, match="at least one"):
        language.compare_objectives({}, params=backbone)
    with pytest.raises(ValueError, match="count is 0"):
        language.compare_objectives(given, params=backbone, count=0)


def pairs_of(strength, seed, count=1_000, width=200):
    """Features with noise of variance 1 in each, and a preference of this signal to noise."""
    generator = np.random.default_rng(seed)
    good, bad = generator.standard_normal((2, count, width))
    good[:, 0] += np.sqrt(2 * strength)
    return good, bad


@pytest.mark.parametrize(
    ("strength", "largest", "spread"), [(1.0, 1.2, 0.031), (2.0, 1.65, 0.041), (0.2, 1.0472, 0.012)]
)
def test_largest_eigenvalue_of_a_preference_is_that_of_the_law(strength, largest, spread):
    predicted = spiked_outlier(strength, 0.2, 0.5)
    assert predicted.value == pytest.approx(largest, abs=5e-5)
    assert predicted.visible == (strength > 0.2**0.5)
    found = [language.reward_law(*pairs_of(strength, seed)) for seed in range(20)]
    values = np.array([each.eigenvalues[0] for each in found])
    # The standard error of 20 draws. At the edge the largest eigenvalue is below it by order N^(-2/3) of it on average.
    assert abs(values.mean() - largest) < 4 * spread / 20**0.5 + (0 if predicted.visible else 0.02)
    assert values.std() < 1.5 * spread
    aligned = np.mean([each.measured_alignment for each in found])
    # Below the threshold the mean of the data itself, which has noise in it, is not orthogonal to the eigenvector.
    if predicted.visible:
        assert aligned == pytest.approx(predicted.alignment, abs=0.2)
        assert all(each.visible for each in found)
    strengths = np.array([each.strength for each in found])
    assert abs(strengths.mean() - strength) < 4 * found[0].strength_error / 20**0.5
    assert strengths.std() < 2 * found[0].strength_error


def test_alignment_with_the_true_direction():
    for strength in (1.0, 2.0):
        predicted, cosines = spiked_outlier(strength, 0.2, 0.5).alignment, []
        for seed in range(10):
            good, bad = pairs_of(strength, seed)
            cosines.append(np.linalg.svd(good - bad, full_matrices=False)[2][0, 0] ** 2)
        assert np.mean(cosines) == pytest.approx(predicted, abs=0.02)


def test_eigenvalues_of_the_law_are_those_of_the_hessian():
    good, bad = pairs_of(1.0, 0, count=60, width=20)
    head = nn.Linear(20, 1).double()
    nn.init.zeros_(head.weight)
    data = language.pairs(torch.tensor(good), torch.tensor(bad), batch_size=30)
    spectrum = hesspec.spectrum(hesspec.Hessian(language.Pairwise(head), CE, data, params="*.weight"), steps=20)
    found = language.reward_law(good, torch.tensor(bad))
    np.testing.assert_allclose(spectrum.eigenvalues, found.eigenvalues, rtol=1e-9)
    few = language.reward_law(good[:8], bad[:8])
    assert (few.eigenvalues > 1e-12).sum() == 8
    assert few.eigenvalues.size == 20


def test_a_law_is_saved_shown_and_drawn(tmp_path):
    found = language.reward_law(*pairs_of(1.0, 0))
    check_saved(found, tmp_path)
    assert "threshold 0.447: visible" in str(found)
    assert found.plot().axes[0].get_xlim()[0] == 0
    check_refused(found, "inside the bulk", outlier=0.5)


@pytest.mark.parametrize(
    ("good", "bad", "words"),
    [
        (np.zeros((3, 2)), np.zeros((2, 2)), "one row of features in each"),
        (np.zeros(3), np.zeros(3), r"must be \(N, d\)"),
        (np.ones((3, 2)), np.zeros((3, 2)), "same for all pairs"),
        (np.full((3, 2), np.nan), np.zeros((3, 2)), "NaN"),
    ],
)
def test_features_that_have_no_law_are_refused(good, bad, words):
    with pytest.raises(ValueError, match=words):
        language.reward_law(good, bad)


def test_strength_out_of_range_is_refused():
    with pytest.raises(ValueError, match="strength is -1"):
        spiked_outlier(-1.0, 0.2, 0.5)
