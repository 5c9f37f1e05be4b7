"""All numbers of a study as one dataset."""

import numpy as np
import pytest
import xarray as xr

from hesspec import load
from hesspec.study import open as open_study
from hesspec.study.running import run_study
from hesspec.study.store import tasks_of
from hesspec.study.study_file import parse_study
from hesspec.study.study_folder import write_study

STUDY = """\
datasets: digits
networks: small_cnn
samples_per_class: [3, 5]
test_samples_per_class: 2
training: {epochs: 4, learning_rates: [0.01, 0.02], batch_size: 8}
measure: {epochs: [0, 2, end], matrices: [hess, g], splits: [train, test], steps: 24}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("study")
    run_study(parse_study(STUDY, "study.yaml"), path)
    return path


def test_every_number_is_that_of_its_file(folder):
    found = open_study(folder)

    assert dict(found.sizes) == {
        "dataset": 1,
        "network": 1,
        "optimizer": 1,
        "start": 1,
        "seed": 1,
        "samples_per_class": 2,
        "epoch": 3,
        "split": 2,
        "matrix": 2,
        "rank": found.sizes["rank"],
        "training_epoch": 5,
    }
    for task in tasks_of(parse_study(STUDY, "study.yaml"), folder):
        for place in task.measurements:
            spectrum = load(task.best.result(place, task.measure))
            here = found.sel(
                dataset="digits",
                network="small_cnn",
                optimizer="sgd",
                start="scratch",
                seed=0,
                samples_per_class=task.best.samples_per_class,
                epoch=place.epoch,
                split=place.split,
                matrix=place.what,
            )
            k = spectrum.eigenvalues.size
            assert here.eigenvalue[:k].values.tolist() == spectrum.eigenvalues.tolist()
            assert here.error_bound[:k].values.tolist() == spectrum.error_bounds.tolist()
            assert here.outlier[:k].values.tolist() == spectrum.is_outlier.tolist()
            assert np.isnan(here.eigenvalue[k:]).all()
            assert (float(here.bulk_low), float(here.bulk_high)) == spectrum.bulk_edges
            assert float(here.trace) == spectrum.trace
            assert float(here.effective_rank) == spectrum.effective_rank
            assert float(here.negative_mass) == spectrum.num_negative.value / spectrum.dimension
            record = task.best.history[place.epoch]
            loss = here.loss.sel(training_epoch=place.epoch)
            assert float(loss) == (record.train_loss if place.split == "train" else record.test_loss)
            assert float(here.learning_rate) == task.best.settings.learning_rate
            assert float(here.parameters) == spectrum.dimension


def test_tracks_belong_to_outliers_and_are_different_at_one_epoch(folder):
    found = open_study(folder)
    tracks, outlier = found.track.values, found.outlier.values

    assert ((tracks >= 0) == outlier).all()
    assert outlier.any()
    for row in tracks.reshape(-1, tracks.shape[-1]):
        kept = row[row >= 0]
        assert len(set(kept)) == len(kept)


def test_a_study_that_is_running_has_gaps(folder, tmp_path):
    write_study(parse_study(STUDY, "study.yaml"), tmp_path, {})
    empty = open_study(tmp_path)
    assert empty.sizes["rank"] == 0
    assert np.isnan(empty.trace).all()

    begun = set()

    def interrupt(what, _done, _total):
        if "epoch" in what:
            begun.add(what)
        if len(begun) > 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_study(parse_study(STUDY, "study.yaml"), tmp_path, on_progress=interrupt)
    part, whole = open_study(tmp_path), open_study(folder)
    seen = ~np.isnan(part.trace)
    assert 0 < int(seen.sum()) < whole.trace.size
    assert (part.trace.values[seen.values] == whole.trace.values[seen.values]).all()


def test_it_can_be_saved_and_read_again(folder, tmp_path):
    found = open_study(folder)
    found.to_netcdf(tmp_path / "study.nc", engine="h5netcdf")

    assert xr.load_dataset(tmp_path / "study.nc", engine="h5netcdf").equals(found)


def test_a_folder_without_a_study_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"There is no study in .*: it has no study\.yaml"):
        open_study(tmp_path)
