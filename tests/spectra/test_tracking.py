"""Outliers are followed by their eigenvectors, from sketches that do not keep these."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import hesspec
from hesspec.krylov.sketch import SKETCH, Sketch
from hesspec.krylov.vectors import Space
from hesspec.spectra.tracking import eigenvector_overlaps, steady_outliers, track_outliers

P = 5_000


def directions(count: int, seed: int) -> torch.Tensor:
    return torch.linalg.qr(torch.randn(P, count, generator=torch.Generator().manual_seed(seed)))[0]


def spiked(values: list[float], vectors: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    bulk = torch.diag(torch.linspace(-0.1, 0.1, P))
    return (bulk + (vectors * torch.tensor(values)) @ vectors.T).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.few(1)
def test_crossing_outliers_keep_their_numbers_and_a_pause_does_not_end_a_track(dtype: torch.dtype) -> None:
    vectors = directions(3, 0)
    values = [[9.0, 7.0, 5.0], [6.0, 7.0, 5.5], [4.0, 7.0, 0.0], [4.0, 3.0, 5.5]]
    spectra = [hesspec.spectrum(spiked(each, vectors, dtype), steps=24) for each in values]

    tracks = [found.tolist() for found in track_outliers(spectra)]

    assert tracks == [[0, 1, 2], [1, 0, 2], [1, 0], [2, 0, 1]]


def test_overlaps_are_those_of_the_eigenvectors_within_four_standard_errors() -> None:
    vectors, others = directions(3, 0), directions(3, 1)
    turned = torch.linalg.qr(vectors + 2.0 / 3 * others)[0]
    first = hesspec.spectrum(spiked([9.0, 7.0, 5.0], vectors, torch.float64), steps=24)
    second = hesspec.spectrum(spiked([9.0, 7.0, 5.0], turned, torch.float64), steps=24)

    found = eigenvector_overlaps(first, second)

    # The bulk turns the eigenvectors by less than 0.1/5.
    true = (vectors.T @ turned).numpy() ** 2
    error = np.sqrt((1 + true) / SKETCH)  # of a cosine; twice that times the cosine of its square
    assert (np.abs(found - true) <= 4 * (2 * np.sqrt(true) * error + error**2) + 0.02).all()


@pytest.mark.parametrize("size", [3, SKETCH - 1, SKETCH, SKETCH + 1, 10 * SKETCH + 7])
def test_sketches_are_linear_and_exact_for_short_vectors(size: int) -> None:
    sketch = Sketch(Space(size), torch.device("cpu"))
    generator = torch.Generator().manual_seed(0)
    u, v = (torch.randn(size, generator=generator, dtype=torch.float64) for _ in range(2))

    assert np.allclose(sketch(2 * u - v), 2 * sketch(u) - sketch(v), rtol=1e-12, atol=1e-12)
    if size <= SKETCH:
        assert sketch(u) @ sketch(v) == pytest.approx(float(u @ v), rel=1e-12, abs=1e-12)
    else:
        spread = np.sqrt((float(u @ v) ** 2 + float(u @ u) * float(v @ v)) / SKETCH)
        assert abs(sketch(u) @ sketch(v) - float(u @ v)) < 4 * spread


def test_the_signs_are_the_same_for_ever() -> None:
    # Files of different versions are compared by them.
    ones = Sketch(Space(16), torch.device("cpu"))(torch.ones(16))

    assert ones.tolist() == [1, 1, -1, 1, 1, 1, 1, 1, 1, -1, 1, -1, -1, 1, 1, -1]


def test_a_restarted_basis_gives_the_same_overlaps() -> None:
    vectors = directions(3, 0)
    operator = spiked([9.0, 7.0, 5.0], vectors, torch.float64)
    whole = hesspec.spectrum(operator, steps=60)
    restarted = hesspec.spectrum(operator, steps=60, basis="restarted", memory=20 * 8 * P)

    assert np.allclose(np.diag(eigenvector_overlaps(whole, restarted)), 1, atol=1e-6)


def test_sketches_survive_the_file(tmp_path) -> None:
    spectrum = hesspec.spectrum(spiked([9.0, 7.0], directions(2, 0), torch.float32), steps=24)
    spectrum.save(tmp_path / "s.nc")

    assert np.array_equal(hesspec.load(tmp_path / "s.nc").eigenvector_sketches, spectrum.eigenvector_sketches)


def test_spectra_of_other_networks_and_without_sketches_are_refused() -> None:
    spectrum = hesspec.spectrum(spiked([9.0], directions(1, 0), torch.float32), steps=24)
    smaller = hesspec.spectrum(torch.diag(torch.tensor([5.0] + [0.1] * 50)), steps=3)
    without = replace(spectrum, eigenvector_sketches=np.empty((0, 0), np.float32))

    with pytest.raises(ValueError, match="5,000 and 51 parameters"):
        eigenvector_overlaps(spectrum, smaller)
    with pytest.raises(ValueError, match="5,000 and 51 parameters"):
        track_outliers([spectrum, smaller])
    with pytest.raises(ValueError, match="earlier version"):
        eigenvector_overlaps(spectrum, without)


def labelled(p_values: list[list[float]], orders: list[list[int]] | None = None) -> list[hesspec.Spectrum]:
    """Spectra whose outliers are the same three directions, in the order given for each, with these p-values."""
    vectors = directions(3, 0)
    heights = [9.0, 7.0, 5.0]
    found = []
    for mine, order in zip(p_values, orders or [[0, 1, 2]] * len(p_values), strict=True):
        values = [heights[order.index(direction)] for direction in range(3)]
        spectrum = hesspec.spectrum(spiked(values, vectors, torch.float64), steps=24)
        rest = np.ones(spectrum.eigenvalues.size - 3)
        found.append(spectrum.with_outlier_p_values(np.concatenate([mine, rest])))
    return found


def flags(spectra: list[hesspec.Spectrum]) -> list[list[bool]]:
    return [spectrum.is_outlier[:3].tolist() for spectrum in spectra]


def test_a_label_that_one_spectrum_alone_gives_or_lacks_is_overruled() -> None:
    spectra = labelled([[0.0, 0.0, 1.0], [0.0, 0.4, 1.0], [0.0, 0.0, 1.0], [0.0, 0.01, 0.02], [0.0, 0.0, 0.9]])

    assert flags(spectra)[1] == [True, False, False]
    assert flags(spectra)[3] == [True, True, True]
    assert flags(steady_outliers(spectra)) == [[True, True, False]] * 5


def test_an_eigenvector_that_leaves_the_bulk_changes_its_label_once() -> None:
    third = [0.9, 0.9, 0.04, 0.2, 0.03, 0.01, 0.01]
    found = steady_outliers(labelled([[0.0, 0.0, value] for value in third]))

    # 3/2 of the medians: .9, .3 (of .9, .04, .2), .06, .045, .045, ...
    assert [spectrum.is_outlier[2] for spectrum in found] == [False, False, False, False, True, True, True]
    assert found[3].outlier_p_values[2] == pytest.approx(1.5 * 0.04)


def test_labels_follow_eigenvectors_that_cross() -> None:
    orders = [[0, 1, 2], [0, 2, 1], [0, 1, 2]]
    spectra = labelled([[0.0, 0.0, 0.3], [0.0, 0.02, 0.02], [0.0, 0.0, 0.3]], orders)

    # Direction 2 is beyond direction 1 in the middle, where everything beyond an outlier is one.
    assert flags(steady_outliers(spectra)) == [[True, True, False], [True, True, True], [True, True, False]]


def test_eigenvectors_without_a_counterpart_keep_their_labels() -> None:
    first, second = directions(3, 0), directions(3, 1)
    spectra = [hesspec.spectrum(spiked([9.0, 7.0, 5.0], v, torch.float64), steps=24) for v in (first, second, first)]
    bare = [replace(spectrum, eigenvector_sketches=np.empty((0, 0), np.float32)) for spectrum in spectra]

    for given in (spectra, bare, spectra[:2]):
        assert flags(steady_outliers(given)) == flags(given) == [[True] * 3] * len(given)
    with pytest.raises(ValueError, match="only those of one network can be followed"):
        steady_outliers([*spectra[:2], hesspec.spectrum(torch.eye(3), steps=3)])


def test_p_values_of_a_series_are_not_saved(tmp_path) -> None:
    spectrum = labelled([[0.3, 0.3, 0.3]])[0]
    spectrum.save(tmp_path / "a.nc")

    assert not spectrum.is_outlier.any()
    assert hesspec.load(tmp_path / "a.nc").is_outlier[:3].all()
