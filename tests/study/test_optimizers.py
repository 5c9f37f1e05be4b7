"""Optimisers, losses and the monitor of studies."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import hesspec
from hesspec.applications.stability.monitoring import Monitor
from hesspec.report import write_report
from hesspec.study import tanh_mlp
from hesspec.study.checkpoints import load_training_state, load_weights, save_training_state
from hesspec.study.datasets import load_dataset
from hesspec.study.losses import LOSSES
from hesspec.study.optimizers import OPTIMIZERS, make_stepper
from hesspec.study.running import run_study
from hesspec.study.settings import TrainingSettings
from hesspec.study.store import tasks_of
from hesspec.study.study_file import load_study, parse_study
from hesspec.study.training import TrainingState, train

LITTLE = """
datasets: digits
networks: tanh_mlp
samples_per_class: 4
test_samples_per_class: 2
optimizers: [sgd, {name: adam, learning_rates: 0.01}]
training: {epochs: 5, learning_rates: 0.5, loss: mse, batch_size: full, weight_decay: 0.0, drops: []}
monitor: {every: 2}
shares: {every: 3, eigenvectors: 4, products: 20}
measure: {epochs: [1, end], matrices: [hess], splits: [train], steps: 6}
"""


def config(text: str = LITTLE):
    return parse_study(text, "study.yaml")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("optimizers")
    run_study(config(), folder)
    return folder


@pytest.mark.parametrize("name", [*OPTIMIZERS])
def test_a_training_that_is_resumed_is_the_same_to_the_bit(name: str, tmp_path: Path) -> None:
    data = load_dataset("digits", "train", samples_per_class=4)
    settings = TrainingSettings(epochs=4, learning_rate=0.01, batch_size=13, optimizer=name, seed=3)
    states: dict[int, tuple[dict[str, torch.Tensor], TrainingState]] = {}

    def keep(network: torch.nn.Module, state: TrainingState) -> None:
        epoch = state.history[-1].epoch
        save_training_state(tmp_path / f"{epoch}.safetensors", state)
        weights = {key: value.clone() for key, value in network.state_dict().items()}
        states[epoch] = weights, load_training_state(tmp_path / f"{epoch}.safetensors", state.history)

    def network() -> torch.nn.Module:
        torch.manual_seed(0)
        return tanh_mlp(1, 10, 8)

    whole = network()
    history = train(whole, data, data, settings, on_state=keep)
    for epoch, (weights, state) in states.items():
        if epoch == 4:
            continue
        again = network()
        again.load_state_dict(weights)
        assert train(again, data, data, settings, resume=state) == history
        assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), again.parameters(), strict=True))


def test_vectors_of_a_gauss_newton_step_are_those_of_the_step_and_change_nothing() -> None:
    data = load_dataset("digits", "train", samples_per_class=3)
    torch.manual_seed(0)
    network, other = tanh_mlp(1, 10, 8), tanh_mlp(1, 10, 8)
    other.load_state_dict(network.state_dict())
    settings = TrainingSettings(epochs=1, learning_rate=0.5, optimizer="fast-gauss-newton")
    steppers = [make_stepper(each, LOSSES["cross-entropy"], settings, 3) for each in (network, other)]
    seen = []
    for _ in range(3):
        before = torch.cat([value.detach().reshape(-1).clone() for value in network.parameters()])
        steppers[0].step(data.inputs, data.targets, lambda: seen.append(steppers[0].vectors()))
        steppers[1].step(data.inputs, data.targets)
        assert all(torch.equal(a, b) for a, b in zip(network.parameters(), other.parameters(), strict=True))
        after = torch.cat([value.detach().reshape(-1) for value in network.parameters()])
        assert torch.equal(seen[-1]["update"], after - before)
        # A step of a positive definite system is a descent direction.
        assert torch.dot(seen[-1]["gradient"], seen[-1]["update"]) < 0


def test_a_network_that_the_optimiser_does_not_take_is_refused() -> None:
    data = load_dataset("digits", "train", samples_per_class=2)
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
    settings = TrainingSettings(epochs=1, learning_rate=0.1, optimizer="muon")
    with pytest.raises(ValueError, match="'muon' cannot be created: No parameter is left for Muon"):
        train(network, data, data, settings)


def test_sgd_and_adam_take_the_steps_of_pytorch() -> None:
    data = load_dataset("digits", "train", samples_per_class=2)
    for name, kind, options in (("sgd", torch.optim.SGD, {"momentum": 0.9}), ("adam", torch.optim.Adam, {})):
        torch.manual_seed(0)
        mine, other = tanh_mlp(1, 10, 8), tanh_mlp(1, 10, 8)
        other.load_state_dict(mine.state_dict())
        settings = TrainingSettings(epochs=1, learning_rate=0.1, weight_decay=0.01, optimizer=name)
        stepper = make_stepper(mine, LOSSES["cross-entropy"], settings, 3)
        optimizer = kind(other.parameters(), lr=0.1, weight_decay=0.01, **options)
        for _ in range(3):
            stepper.step(data.inputs, data.targets)
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(other(data.inputs), data.targets).backward()
            optimizer.step()
        assert all(torch.equal(a, b) for a, b in zip(mine.parameters(), other.parameters(), strict=True))


def test_squared_error_is_to_one_hot_labels() -> None:
    outputs = torch.tensor([[1.0, 2.0, 0.0], [0.0, 0.0, 4.0]], dtype=torch.float64)
    errors = [0.0, 2.0, 0.0, 0.0, 0.0, 3.0]
    assert float(LOSSES["mse"](outputs, torch.tensor([0, 2]))) == pytest.approx(np.square(errors).mean())


def test_every_optimiser_is_a_task_with_its_own_rate_and_monitor(folder: Path) -> None:
    tasks = tasks_of(config(), folder)
    assert [task.runs[0].settings.optimizer for task in tasks] == ["sgd", "adam"]
    for task in tasks:
        assert task.done
        assert task.best is not None
        run = hesspec.load(task.best.observed("monitor"))
        assert run.steps.tolist() == [2, 4]
        assert run.attributes["optimizer"] == task.best.settings.optimizer
        assert run.is_preconditioned == (task.best.settings.optimizer == "adam")
        # The largest eigenvalue after step 4 of 5, one step a full batch: near that of the next step's spectrum.
        spectrum = hesspec.load(task.best.result(task.measurements[-1], task.measure))
        assert run.sharpness[-1] == pytest.approx(float(spectrum.nodes.max()), rel=0.3)
        shares = hesspec.load(task.best.observed("shares"))
        assert shares.steps.tolist() == [3]
        assert shares.names.tolist() == ["gradient", "momentum", "update"]
        assert ((shares.low <= shares.values) & (shares.values <= shares.high)).all()
        assert shares.attributes["optimizer"] == task.best.settings.optimizer
    found = hesspec.study.open(folder)
    assert found.optimizer.values.tolist() == ["sgd", "adam"]
    assert found.monitored_step.values.tolist() == [2, 4]
    assert found.shared_step.values.tolist() == [3]
    for task, name in zip(tasks, ("sgd", "adam"), strict=True):
        run, shares = (hesspec.load(task.runs[0].observed(what)) for what in ("monitor", "shares"))
        mine = found.sel(optimizer=name).squeeze(("dataset", "network", "start", "seed", "samples_per_class"))
        np.testing.assert_array_equal(mine.sharpness / mine.threshold, run.ratios)
        np.testing.assert_array_equal(mine.dominant_share.sel(vector=shares.names), shares.values)
    assert found.learning_rate.squeeze().values.tolist() == [0.5, 0.01]
    assert np.isfinite(found.eigenvalue.isel(rank=0)).all()
    records = json.loads((tasks[0].runs[0].path / "training.json").read_text())
    assert records[-1]["train_loss"] < records[0]["train_loss"] < 1


def test_the_monitor_of_a_resumed_training_is_the_same_to_the_bit(folder: Path, tmp_path: Path) -> None:
    (plain, _) = tasks_of(config(), folder)
    expected = hesspec.load(plain.runs[0].observed("monitor"))
    short = config(LITTLE.replace("epochs: 5", "epochs: 3").replace("[1, end]", "[1]"))
    run_study(short, tmp_path)
    (first, _), (whole, _) = tasks_of(short, tmp_path), tasks_of(config(), tmp_path)
    # What an interrupted run of the longer training leaves; without drops the rates of the first epochs are the same.
    whole.runs[0].path.mkdir(parents=True)
    for file in first.runs[0].path.iterdir():
        if file.suffix in (".safetensors", ".json"):
            (whole.runs[0].path / file.name).write_bytes(file.read_bytes())

    run_study(config(), tmp_path)

    found = hesspec.load(whole.runs[0].observed("monitor"))
    for name in ("steps", "sharpness", "sharpness_bounds", "risk", "products"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
    shares, before = (hesspec.load(run.observed("shares")) for run in (whole.runs[0], plain.runs[0]))
    for name in ("steps", "names", "values", "low", "high"):
        np.testing.assert_array_equal(getattr(shares, name), getattr(before, name))


def test_a_monitored_training_whose_monitor_is_missing_is_trained_again(folder: Path, tmp_path: Path) -> None:
    text = LITTLE.replace("[sgd, {name: adam, learning_rates: 0.01}]", "sgd")
    run_study(config(text), tmp_path)
    (task,) = tasks_of(config(text), tmp_path)
    before = load_file(task.runs[0].weights(5))
    task.runs[0].observed("monitor").unlink()
    assert not task.runs[0].ended

    run_study(config(text), tmp_path)

    (task,) = tasks_of(config(text), tmp_path)
    assert task.done
    assert hesspec.load(task.runs[0].observed("monitor")).steps.tolist() == [2, 4]
    assert all(torch.equal(value, before[name]) for name, value in load_file(task.runs[0].weights(5)).items())


def test_the_report_shows_the_monitor(folder: Path) -> None:
    page = write_report(folder).read_text(encoding="utf-8")
    assert "Further results" in page
    assert "Stability of a training · digits · tanh_mlp · adam" in page
    assert "Dominant shares through a training · digits · tanh_mlp · sgd" in page
    assert page.count("data:image/svg+xml;base64,") == 4
    assert "last ratio to the threshold" in page


def test_the_state_of_another_model_is_refused() -> None:
    model = torch.nn.Linear(3, 1)
    data = [(torch.randn(4, 3), torch.randn(4, 1))]

    def monitor(of: torch.nn.Module) -> Monitor:
        return hesspec.stability.monitor(of, torch.nn.MSELoss(), data, torch.optim.SGD(of.parameters(), lr=0.1))

    first = monitor(model)
    first(1)
    state = first.state_dict()
    again = monitor(model)
    again.load_state_dict(state)
    assert np.array_equal(again.readings, first.readings, equal_nan=True)
    with pytest.raises(ValueError, match="is of 4 parameters, but the model has 3"):
        monitor(torch.nn.Linear(3, 1, bias=False)).load_state_dict(state)
    with pytest.raises(ValueError, match="not the state of a monitor: it has only nothing"):
        again.load_state_dict({})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("sgd, {name: adam, learning_rates: 0.01}", "adan"), "no optimiser 'adan'.*'adam'"),
        (("learning_rates: 0.01", "options: {momentum: 1}"), "'adam' cannot be created with the options .*momentum"),
        (("loss: mse", "loss: mae"), "no loss 'mae'.*'mse'"),
        (("batch_size: full", "batch_size: all"), "at least 1, or 'full'"),
        (("every: 2", "every: 0"), "monitor.every is 0"),
        (("eigenvectors: 4", "eigenvectors: 0"), "shares.eigenvectors is 0"),
        (("every: 2", "evry: 2"), "no key 'evry'; did you mean 'every'"),
        (("steps: 6", "steps: 6, structure: true"), "belongs to cross-entropy, but training.loss is 'mse'"),
        (("sgd, {", "adam, {"), "'adam' is among the optimizers twice"),
        (("sgd, {", "muon, {"), "monitor needs an optimiser whose threshold .*'muon'"),
        (("sgd, {name: adam, learning_rates: 0.01}", "fast-gauss-newton"), "monitor needs an optimiser"),
    ],
)
def test_faults_are_sentences(change: tuple[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config(LITTLE.replace(*change))


def test_the_preset_monitors_full_batch_training() -> None:
    study = load_study("edge-of-stability")
    assert study.training.batch_size == "full"
    assert study.monitor is not None
    assert [optimizer.name for optimizer in study.optimizers] == ["sgd", "adam"]
    assert [optimizer.name for optimizer in load_study("optimizers").optimizers] == list(OPTIMIZERS)


def test_weights_of_a_task_fit_its_network(folder: Path) -> None:
    (task, _) = tasks_of(config(), folder)
    load_weights(tanh_mlp(1, 10, 8), task.runs[0].weights(5))
