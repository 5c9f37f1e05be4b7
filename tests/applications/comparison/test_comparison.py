"""Comparison of spectra: every difference against the truth, and what is matched with what."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from saved_results import check_saved
from scipy.stats import wasserstein_distance

import hesspec
from hesspec.applications.comparison.difference import DISTANCE
from hesspec.applications.comparison.quantities import QUANTITIES, overlap_of_pairs, overlap_of_sketches
from hesspec.plot.figure import ShownFigure


def symmetric(values, seed, dtype=torch.float64):
    """Matrix with these eigenvalues, and its eigenvectors."""
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.linalg.qr(torch.randn(len(values), len(values), generator=generator, dtype=torch.float64))[0]
    return ((vectors * values) @ vectors.T).to(dtype), vectors


def bulk(p, width, seed):
    generator = torch.Generator().manual_seed(seed)
    return width * torch.randn(p, generator=generator, dtype=torch.float64)


def spiked(p, width, spikes, seed):
    return torch.cat([bulk(p - len(spikes), width, seed), torch.tensor(spikes, dtype=torch.float64)])


def of(spectrum, **attributes):
    return replace(spectrum, attributes={**spectrum.attributes, **attributes})


def rows(comparison):
    return comparison.to_dataframe().set_index("quantity")


def truth(values):
    """The compared numbers of known eigenvalues."""
    size = values.abs()
    found = {
        "largest eigenvalue": values.max(),
        "smallest eigenvalue": values.min(),
        "trace": values.sum(),
        "mean eigenvalue": values.mean(),
        "effective rank": size.sum() / size.max(),
        "negative share": (values < 0).double().mean(),
    }
    return {name: float(number) for name, number in found.items()}


@pytest.mark.parametrize(("dtype", "sizes"), [(torch.float32, (300, 300)), (torch.float64, (200, 300))])
def test_differences_and_the_distance_enclose_the_truth(dtype, sizes):
    """10 pairs: intervals of at least 90%, so at most 4 misses of each number (0.2% of Binomial(10, 0.1) are more)."""
    misses = dict.fromkeys([*truth(bulk(3, 1, 0)), DISTANCE], 0)
    for seed in range(10):
        first = spiked(sizes[0], 0.5, [4.0, 6.0], 2 * seed)
        second = spiked(sizes[1], 0.3, [5.0, -3.0, 6.5], 2 * seed + 1)
        measured = [hesspec.spectrum(symmetric(v, seed, dtype)[0], steps=30, seed=seed) for v in (first, second)]
        found = rows(hesspec.compare(*measured, names=["a", "b"]))
        truths = {name: truth(second)[name] - number for name, number in truth(first).items()}
        truths[DISTANCE] = wasserstein_distance(first, second)
        for name, number in truths.items():
            # Rounding of a float32 matrix moves its own eigenvalues.
            slack = 1e-5 * (1 + abs(number)) if dtype == torch.float32 else 1e-12
            row = found.loc[name]
            misses[name] += not row["lower"] - slack <= number <= row["upper"] + slack
    assert max(misses.values()) <= 4, misses


def test_the_distance_is_that_of_the_measures_exactly():
    first = hesspec.spectrum(torch.diag(torch.tensor([0.0, 1.0, 3.0], dtype=torch.float64)), steps=3)
    second = hesspec.spectrum(torch.diag(torch.tensor([5.0, 6.0, 8.0, 5.0, 6.0, 8.0], dtype=torch.float64)), steps=6)
    found = hesspec.compare(first, second, names=["a", "b"])
    assert found.distances[1, 0] == pytest.approx(5)
    assert rows(found).loc[DISTANCE, "exceeds_error"]


@pytest.mark.parametrize("steps", [24, 400])
def test_a_spectrum_does_not_differ_from_itself(steps):
    spectrum = hesspec.spectrum(symmetric(spiked(300, 0.2, [3.0], 1), 1)[0], steps=steps)
    found = rows(hesspec.compare(spectrum, spectrum))
    assert not found["exceeds_error"].fillna(value=False).any()
    assert (found.loc[list(QUANTITIES), "difference"] == 0).all()


def test_a_difference_beyond_the_errors_is_marked_and_one_within_is_not():
    values = spiked(300, 0.2, [3.0], 1)
    first, second, third = (
        hesspec.spectrum(symmetric(v, 1)[0], steps=60) for v in (values, values * 1.5, spiked(300, 0.2, [3.0], 2))
    )
    found = hesspec.compare(first, second, third).to_dataframe().set_index(["run", "quantity"])["exceeds_error"]
    run, other = found.index.levels[0]
    assert found[run, "largest eigenvalue"]
    assert not found[other, "negative share"]
    assert found.index.levels[0].tolist() == ["(2)", "(3)"]


def test_numbers_of_a_positive_semidefinite_matrix():
    values = torch.cat([torch.zeros(200), torch.linspace(0.1, 1, 100), torch.tensor([9.0])]).double()
    spectrum = of(hesspec.spectrum(symmetric(values, 0)[0], steps=40), positive_semidefinite=True)
    found = hesspec.compare(spectrum, spectrum)
    place = {name: number for number, name in enumerate(found.quantities)}
    low, high = found.lower[0, 0], found.upper[0, 0]
    assert (low[place["negative share"]], high[place["negative share"]]) == (0, 0)
    assert low[place["smallest eigenvalue"]] == 0
    assert low[place["effective rank"]] <= values.sum() / 9 <= high[place["effective rank"]]


@pytest.mark.parametrize("p", [500, 4000])
@pytest.mark.parametrize("turned", [0, 2, 4])
def test_the_overlap_of_sketches_is_that_of_the_eigenvectors(p, turned):
    """`turned` of 4 outliers have other eigenvectors in the second operator, which are orthogonal to the first."""
    values = torch.cat([torch.linspace(-0.1, 0.1, p - 8), torch.zeros(4), torch.tensor([5.0, 6.0, 7.0, 8.0])]).double()
    other = values.clone()
    for i in range(turned):
        other[p - 1 - i], other[p - 5 - i] = values[p - 5 - i], values[p - 1 - i]
    first, second = (hesspec.spectrum(torch.diag(v), steps=40) for v in (values, other))
    overlap, error, count = overlap_of_sketches(first, second)
    assert count == 4
    assert abs(overlap - (1 - turned / 4)) <= error + 1e-9
    assert error == 0 if p <= 2039 else 0 < error < 0.1


def test_the_overlap_of_eigenpairs_is_exact():
    angle = 0.3
    values = torch.cat([torch.linspace(-0.1, 0.1, 298), torch.tensor([5.0, 9.0])]).double()
    matrix, vectors = symmetric(values, 3)
    # The eigenvector of 5 is turned towards one of the bulk; that of 9 stays.
    turned = vectors.clone()
    turned[:, 298] = np.cos(angle) * vectors[:, 298] + np.sin(angle) * vectors[:, 0]
    turned[:, 0] = -np.sin(angle) * vectors[:, 298] + np.cos(angle) * vectors[:, 0]
    pairs = [hesspec.eigenpairs(m, count=2, steps=40) for m in (matrix, (turned * values) @ turned.T)]
    overlap, error, count = overlap_of_pairs(*pairs)
    assert count == 2
    assert abs(overlap - (1 + np.cos(angle) ** 2) / 2) <= error <= 1e-6
    found = hesspec.compare(*pairs)
    assert (found.overlaps[1, 0], found.overlap_errors[1, 0]) == (overlap, error)
    assert "overlap of eigenspaces, 2 largest" in set(found.to_dataframe()["quantity"])


@pytest.fixture(scope="module")
def spectrum():
    return hesspec.spectrum(symmetric(spiked(200, 0.2, [30.0], 1), 1)[0], steps=30)


@pytest.fixture
def folders(tmp_path, spectrum):
    """Two folders of spectra, which share Hess and G of the training set at the end."""
    for run, factor in (("sgd", 1), ("adam", 2)):
        scaled = replace(spectrum, eigenvalues=factor * spectrum.eigenvalues, norm=factor * spectrum.norm)
        for matrix in ("GaussNewton", "Hessian", *(["Residual"] if run == "sgd" else [])):
            for checkpoint, epoch in (("start", 0), ("end", 5)):
                name = f"{checkpoint}-{matrix}.nc"
                of(scaled, matrix=matrix, split="train", checkpoint=checkpoint, epoch=epoch).save(tmp_path / run / name)
    of(spectrum, matrix="Hessian", split="test", checkpoint="end", epoch=5).save(tmp_path / "adam" / "test.nc")
    return tmp_path


def test_folders_are_matched_and_what_only_one_has_is_named(folders):
    found = hesspec.compare(folders / "sgd", folders / "adam")
    assert found.runs.tolist() == ["sgd", "adam"]
    assert found.places.tolist() == ["Hess, train, start", "G, train, start", "Hess, train, end", "G, train, end"]
    assert found.unmatched.tolist() == ["sgd: H, train, start", "sgd: H, train, end", "adam: Hess, test, end"]
    assert "Only in some, and not compared: sgd: H, train, start; " in repr(found)


@pytest.mark.parametrize(
    ("how", "places"),
    [
        ({"matrix": "g"}, ["G, train, start", "G, train, end"]),
        ({"checkpoint": "end", "split": "train"}, ["Hess, train, end", "G, train, end"]),
        ({"epoch": 0, "matrix": ["hess", "g"]}, ["Hess, train, start", "G, train, start"]),
    ],
)
def test_a_part_of_a_folder_can_be_selected(folders, how, places):
    assert hesspec.compare(folders / "sgd", folders / "adam", **how).places.tolist() == places


def test_spectra_of_a_single_place_each_are_compared_whatever_they_are_of(folders):
    sgd = folders / "sgd"
    found = hesspec.compare(sgd / "end-Hessian.nc", sgd / "end-GaussNewton.nc")
    assert (found.runs.tolist(), found.places.tolist()) == (["Hess", "G"], ["train, end"])
    found = hesspec.compare(str(sgd / "start-Hessian.nc"), sgd / "end-Hessian.nc")
    assert (found.runs.tolist(), found.places.tolist()) == (["start", "end"], ["Hess, train"])


def test_a_folder_with_several_networks_is_matched_by_network(tmp_path, spectrum):
    for run in ("a", "b"):
        for network in ("small", "large"):
            of(spectrum, matrix="Hessian", split="train", network=network).save(tmp_path / run / f"{network}.nc")
    found = hesspec.compare(tmp_path / "a", tmp_path / "b")
    assert sorted(found.places) == ["Hess, train, large", "Hess, train, small"]


@pytest.mark.parametrize(
    ("attribute", "values", "labels"),
    [
        ("optimizer", ("sgd", "adam"), ("by sgd", "by adam")),
        ("start", ("imagenet", "scratch"), ("from imagenet", "from scratch")),
        ("learning_rate", (0.01, 0.1), ("rate 0.01", "rate 0.1")),
    ],
)
def test_trainings_of_a_study_are_matched_by_what_distinguishes_them(tmp_path, spectrum, attribute, values, labels):
    last = dict(zip(values, (5, 9), strict=True))
    for run in ("a", "b"):
        for value in values:
            for epoch in (0, last[value]):
                named = {attribute: value, "epoch": epoch}
                of(spectrum, matrix="Hessian", **named).save(tmp_path / run / f"{value}-{epoch}.nc")
    found = hesspec.compare(tmp_path / "a", tmp_path / "b")
    wanted = [f"Hess, epoch {epoch}, {label}" for label, end in zip(labels, (5, 9), strict=True) for epoch in (0, end)]
    assert sorted(found.places) == sorted(wanted)
    assert not found.notes.size  # nothing is taken for another version of the same
    # The end of each training is its own last epoch.
    ends = hesspec.compare(tmp_path / "a", tmp_path / "b", checkpoint="end")
    assert sorted(ends.places) == ["Hess, epoch 5", "Hess, epoch 9"]


def test_of_two_spectra_of_the_same_the_newer_one_is_compared(tmp_path, spectrum):
    for run in ("a", "b"):
        for name, created in (("old", "2026-01-01"), ("new", "2026-02-01")):
            of(spectrum, matrix="Hessian", split="train", created=created).save(tmp_path / run / f"{name}.nc")
    found = hesspec.compare(tmp_path / "a", tmp_path / "b")
    assert found.places.tolist() == ["Hess, train"]
    assert [note.split(":")[0] for note in found.notes] == ["a", "b"]
    assert "old.nc is older than" in found.notes[0]


def test_eigenvectors_of_other_parameters_are_not_compared(spectrum):
    attributes = {"matrix": "Hessian", "network": "mlp"}
    first, second = of(spectrum, params="0.*", **attributes), of(spectrum, params="1.*", **attributes)
    assert hesspec.compare(first, second).overlap_counts[1, 0] == 0
    assert hesspec.compare(first, first).overlap_counts[1, 0] == 1


def test_bad_input_is_refused_with_a_remedy(folders, spectrum, tmp_path):
    for arguments, message in [
        ((spectrum,), "at least two spectra, files or folders, and was given 1"),
        ((), "was given 0"),
        ((spectrum, 3), "An int cannot be compared; pass spectra"),
    ]:
        with pytest.raises(ValueError, match=message):
            hesspec.compare(*arguments)
    with pytest.raises(FileNotFoundError):
        hesspec.compare(spectrum, tmp_path / "missing.nc")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no readable spectra in"):
        hesspec.compare(spectrum, tmp_path / "empty")
    with pytest.raises(ValueError, match="2 different names"):
        hesspec.compare(spectrum, spectrum, names=["a", "a"])
    with pytest.raises(ValueError, match="sgd has no spectrum with matrix G_class; it has G, H, Hess"):
        hesspec.compare(folders / "sgd", folders / "adam", matrix="g-class")
    for name in ("x", "y"):
        for split in ("train", "test"):
            of(spectrum, matrix="Hessian", split=f"{split}-{name}").save(tmp_path / name / f"{split}.nc")
    with pytest.raises(ValueError, match="nothing to compare: no spectrum is of the same split: x has test-x, train-x"):
        hesspec.compare(tmp_path / "x", tmp_path / "y")


def test_a_file_that_cannot_be_read_is_named(folders):
    (folders / "sgd" / "broken.nc").write_bytes(b"nothing")
    assert any("broken.nc" in note for note in hesspec.compare(folders / "sgd", folders / "adam").notes)


def test_it_is_saved_and_read_again(folders, tmp_path):
    found = hesspec.compare(folders / "sgd", folders / "adam")
    check_saved(found, tmp_path)
    assert found.to_dataset().sizes["place"] == 4


def test_sizes_that_differ_are_pointed_out():
    first, second = (hesspec.spectrum(symmetric(bulk(p, 1, 0), 0)[0], steps=20) for p in (200, 300))
    found = hesspec.compare(first, second)
    assert any("numbers of parameters differ" in remark for remark in found.remarks())
    assert "mean eigenvalue" in repr(found)
    assert "mean eigenvalue" not in repr(hesspec.compare(first, first))
    assert found.overlap_counts.max() == 0


def test_the_figure_has_a_colour_for_each_run_and_a_marker_for_each_matrix(folders):
    figure = hesspec.compare(folders / "sgd", folders / "adam", checkpoint="end", split="train").plot()
    assert isinstance(figure, ShownFigure)  # which notebooks display
    titles = [axes.get_title(loc="left").split("\n")[0] for axes in figure.axes]
    assert titles == ["Hess, train, end", "G, train, end"]
    (legend,) = figure.legends
    assert [text.get_text().split(" (")[0] for text in legend.get_texts()] == [
        "sgd", "adam", "outliers of Hess", "outliers of G",
    ]  # fmt: skip
    colours = [[line.get_color() for line in axes.get_lines() if line.get_linewidth() == 1.6] for axes in figure.axes]
    assert colours[0] == colours[1]
    assert len(set(colours[0])) == 2
    for axes in figure.axes:
        labels = [label.get_text() for label in axes.get_xticklabels()]
        assert all("^" not in label and "$" not in label for label in labels)
