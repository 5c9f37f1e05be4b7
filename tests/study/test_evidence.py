"""Studies with `measure.laplace`: the evidence of every checkpoint, from its spectrum of G on the training set."""

import numpy as np
import pytest
import torch
from torch import nn

import hesspec
from hesspec.cli.tables.layout import rich_table
from hesspec.report import write_report
from hesspec.study import load_weights, run_study
from hesspec.study.evidence import evidence_of
from hesspec.study.networks import build_network
from hesspec.study.store import EVIDENCE, tasks_of
from hesspec.study.study_file import parse_study

STUDY = """
datasets: digits
networks: tanh_mlp
samples_per_class: [3, 5]
test_samples_per_class: 3
training: {epochs: 4, learning_rates: 0.1, batch_size: 10}
measure: {epochs: [0, end], matrices: [g], splits: [train], steps: 12, laplace: true}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("study")
    run_study(parse_study(STUDY, "study.yaml"), path)
    return path


def test_evidence_of_every_checkpoint_is_in_the_dataset(folder):
    found = hesspec.study.open(folder)
    assert not found.attrs["unread"]
    assert found.log_evidence.dims == ("dataset", "network", "optimizer", "start", "seed", "samples_per_class", "epoch")
    for task in tasks_of(parse_study(STUDY, "study.yaml"), folder):
        run = task.best
        data = run.dataset("train")
        for epoch in (0, 4):
            network = build_network("tanh_mlp", channels=1, classes=10, size=8)
            load_weights(network, run.weights(epoch))
            posterior = hesspec.laplace.Laplace(
                network, nn.CrossEntropyLoss(), data.batches(256), rank=1, steps=12, verify=False
            )
            best = posterior.marginal.optimise_prior()
            mine = found.isel(dataset=0, network=0, optimizer=0, start=0, seed=0).sel(
                samples_per_class=run.samples_per_class, epoch=epoch
            )
            assert float(mine.prior_precision) == pytest.approx(best.value, rel=1e-3)
            truth = posterior.log_evidence(best.value)
            for name, value in zip(("", "_lower", "_upper"), truth, strict=True):
                assert float(mine[f"log_evidence{name}"]) == pytest.approx(value, rel=1e-3)
            gamma = posterior.effective_parameters(best.value).value
            assert float(mine.effective_parameters) == pytest.approx(gamma, rel=1e-3)
            assert float(mine.squared_norm) == pytest.approx(posterior.marginal.squared_norm, rel=1e-6)
    assert (found.log_evidence_lower <= found.log_evidence).all()
    assert found.log_evidence.attrs["units"] == "nats"


def test_it_is_measured_again_where_its_file_is_lost_and_not_otherwise(folder):
    config = parse_study(STUDY, "study.yaml")
    task = tasks_of(config, folder)[0]
    assert task.done
    files = {place.what: task.best.result(place, task.measure) for place in task.measurements if place.epoch == 4}
    before = {name: file.stat().st_mtime_ns for name, file in files.items()}
    files[EVIDENCE].unlink()
    assert [place.what for place in task.missing] == [EVIDENCE]
    run_study(config, folder)
    assert files[EVIDENCE].is_file()
    assert files["GaussNewton"].stat().st_mtime_ns == before["GaussNewton"]


def test_report_and_tables_show_it(folder):
    write_report(folder, folder / "report.html")
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "Evidence of a Laplace approximation · digits · tanh_mlp" in page
    task = tasks_of(parse_study(STUDY, "study.yaml"), folder)[0]
    place = next(place for place in task.measurements if place.what == EVIDENCE)
    found = hesspec.load(task.best.result(place, task.measure))
    assert "log evidence" in found.summary()
    assert rich_table(found.tables()[0]).row_count == 51
    assert found.attributes["epoch"] == place.epoch
    # At a prior that is not the best, nothing is stated of the best.
    assert np.isnan(found.at_best(name="log_evidence")) == (found.best not in found.prior_precision)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("batch_size: 10", "batch_size: 10, loss: mse"), "measure.laplace needs a loss that is a likelihood"),
        (("[g]", "[hess]"), "needs the spectra of G on the training set: add g"),
        (("[train]", "[test]"), "needs the spectra of G on the training set"),
    ],
)
def test_what_has_no_evidence_is_told(change, message):
    with pytest.raises(ValueError, match=message):
        parse_study(STUDY.replace(*change), "study.yaml")


def test_spectra_of_other_parameters_are_refused():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 2))
    data = [(torch.randn(4, 3), torch.arange(4) % 2)]
    spectrum = hesspec.spectrum(hesspec.GaussNewton(network, nn.CrossEntropyLoss(), data))
    with pytest.raises(ValueError, match="of 8 parameters, but 6 parameters"):
        evidence_of(network, spectrum, ["0.weight"])
