"""Spectra measured during trainings by Lightning."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, MLFlowLogger, TensorBoardLogger, WandbLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import hesspec
from hesspec.integrations import LightningCallback

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning:lightning"),
    # Lightning reads its own checkpoints of optimisers and loops with pickle.
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

LOSS = nn.CrossEntropyLoss()


class Net(LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Dropout(0.3), nn.Linear(5, 3))

    def forward(self, inputs):
        return self.net(inputs)

    def training_step(self, batch, _):
        loss = LOSS(self(batch[0]), batch[1])
        self.log("loss", loss)
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.fixture
def problem(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    seed_everything(0, verbose=False)
    inputs, targets = torch.randn(24, 4), torch.randint(3, (24,))
    data = {"train": [(inputs, targets)]}
    return Net(), DataLoader(TensorDataset(inputs, targets), batch_size=8, shuffle=True), data


def trainer(callbacks, epochs=2, logger=False, **options):
    checkpoints = ModelCheckpoint("checkpoints", filename="{epoch}", save_top_k=-1)
    return Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        callbacks=[*callbacks, checkpoints],
        logger=logger,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )


def names(folder="spectra"):
    return sorted(path.name for path in Path(folder).iterdir())


def test_spectra_are_those_of_the_epochs_and_the_training_is_the_same_without(problem):
    model, loader, data = problem
    start = {name: value.clone() for name, value in model.state_dict().items()}
    callback = LightningCallback("spectra", LOSS, data, ["hess", "g"], at_epochs=[0, 2], steps=5)
    seed_everything(1, verbose=False)
    trainer([callback]).fit(model, loader)
    end = {name: value.clone() for name, value in model.state_dict().items()}
    assert names() == [f"epoch-000{e}-train-{m}.nc" for e in (0, 2) for m in ("GaussNewton", "Hessian")]
    assert all(part.training for part in model.modules())

    for epoch, state in ((0, start), (2, end)):
        model.load_state_dict(state)
        exact = hesspec.spectrum(hesspec.Hessian(model.net.eval(), LOSS, data["train"]), steps=5)
        found = hesspec.load(f"spectra/epoch-000{epoch}-train-Hessian.nc")
        assert np.array_equal(found.nodes, exact.nodes)
        assert (found.attributes["epoch"], found.attributes["step"]) == (epoch, 3 * epoch)

    model.load_state_dict(start)
    model.train()
    seed_everything(1, verbose=False)
    trainer([]).fit(model, loader)
    assert all(torch.equal(value, end[name]) for name, value in model.state_dict().items())


def test_steps_are_those_of_the_optimiser_and_a_submodule_can_be_measured(problem):
    model, loader, data = problem
    callback = LightningCallback("spectra", LOSS, data, at_steps=range(0, 100, 2), module="net", steps=3)
    trainer([callback], accumulate_grad_batches=2).fit(model, loader)
    assert names() == [f"step-{step:08}-train-Hessian.nc" for step in (0, 2, 4)]
    found = hesspec.load("spectra/step-00000002-train-Hessian.nc")
    assert {name: found.attributes[name] for name in ("step", "epoch", "checkpoint")} == {
        "step": 2,
        "epoch": 1.0,
        "checkpoint": "step 2",
    }
    with pytest.raises(ValueError, match="no submodule 'head'; it has net"):
        trainer([LightningCallback("others", LOSS, data, module="head")]).fit(model, loader)


@pytest.mark.parametrize("same", [True, False], ids=["the same weights", "other weights"])
def test_a_training_that_resumes_measures_what_is_missing_once(problem, same):
    model, loader, data = problem

    def callback():
        return LightningCallback("spectra", LOSS, data, steps=3, progress=False)

    def resumed():
        # In another process a callback is new.
        seed_everything(3, verbose=False)
        checkpoint = "checkpoints/epoch=0.ckpt"
        trainer([callback()], epochs=3).fit(Net(), loader, ckpt_path=checkpoint, weights_only=True)

    trainer([callback()], epochs=1).fit(model, loader)
    resumed()
    before = {name: Path(f"spectra/{name}").stat().st_mtime_ns for name in names()}
    assert names() == [f"epoch-000{epoch}-train-Hessian.nc" for epoch in range(4)]
    # As if the process had been killed before the last measurement, and between a checkpoint and its measurement.
    for epoch in (1, 3):
        Path(f"spectra/epoch-000{epoch}-train-Hessian.nc").unlink()
    if not same:
        loader = DataLoader(loader.dataset, batch_size=6)
    resumed()
    after = {name: Path(f"spectra/{name}").stat().st_mtime_ns for name in names()}
    assert before.keys() == after.keys()
    kept = {name for name in after if after[name] == before[name]}
    assert kept == {f"epoch-000{epoch}-train-Hessian.nc" for epoch in ((0, 2) if same else (0,))}


def test_a_training_that_resumes_within_an_epoch_does_not_take_its_weights_for_those_of_the_end(problem):
    model, loader, data = problem
    every = ModelCheckpoint("within", filename="{step}", save_top_k=-1, every_n_train_steps=4)
    trainer([LightningCallback("spectra", LOSS, data, steps=3), every]).fit(model, loader)
    before = {name: Path(f"spectra/{name}").stat().st_mtime_ns for name in names()}
    Path("spectra/epoch-0002-train-Hessian.nc").unlink()
    callback = LightningCallback("spectra", LOSS, data, steps=3)
    trainer([callback], epochs=3).fit(Net(), loader, ckpt_path="within/step=4.ckpt", weights_only=True)
    after = {name: Path(f"spectra/{name}").stat().st_mtime_ns for name in names()}
    assert names() == [f"epoch-000{epoch}-train-Hessian.nc" for epoch in range(4)]
    assert {name for name in before if after[name] == before[name]} == {
        f"epoch-000{epoch}-train-Hessian.nc" for epoch in (0, 1)
    }


def test_another_training_in_the_same_folder_is_refused(problem):
    model, loader, data = problem
    trainer([LightningCallback("spectra", LOSS, data, steps=3)], epochs=1).fit(model, loader)
    with pytest.raises(ValueError, match="belongs to another measurement: its weights is"):
        trainer([LightningCallback("spectra", LOSS, data, steps=3)], epochs=1).fit(Net(), loader)


def test_every_logger_of_the_trainer_gets_the_spectra(problem):
    model, loader, data = problem
    loggers = [
        CSVLogger("csv", name="", version=""),
        TensorBoardLogger("tensorboard", name="", version=""),
        MLFlowLogger(tracking_uri=f"file:{Path.cwd()}/mlflow"),
        WandbLogger(offline=True, save_dir=Path.cwd()),
    ]
    callback = LightningCallback("spectra", LOSS, data, at_epochs=[0, 1], steps=3, progress=False)
    trainer([callback], epochs=1, logger=loggers, log_every_n_steps=1).fit(model, loader)
    wanted = {3 * epoch: hesspec.load(f"spectra/epoch-000{epoch}-train-Hessian.nc").norm for epoch in (0, 1)}
    name = "hesspec/train/Hessian"

    with Path("csv/metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {int(row["step"]): float(row[f"{name}/norm"]) for row in rows if row[f"{name}/norm"]} == wanted
    events = EventAccumulator("tensorboard").Reload()
    assert {event.step: event.value for event in events.Scalars(f"{name}/norm")} == pytest.approx(wanted, rel=1e-6)
    assert [event.step for event in events.Images(f"{name}/spectrum")] == [0, 3]
    client = loggers[2].experiment
    assert {each.step: each.value for each in client.get_metric_history(loggers[2].run_id, f"{name}/norm")} == wanted
    assert {each.path for each in client.list_artifacts(loggers[2].run_id, name)} == {
        f"{name}/spectrum-{step:08}.png" for step in wanted
    }
    summary = loggers[3].experiment.summary
    assert (summary[f"{name}/norm"], summary["trainer/global_step"] >= 2) == (wanted[3], True)
    loggers[3].experiment.finish()


def test_errors_are_found_before_the_training():
    with pytest.raises(ValueError, match="Both at_epochs and at_steps"):
        LightningCallback("spectra", LOSS, {"train": []}, at_epochs=[1], at_steps=[1])
    with pytest.raises(ValueError, match="at_steps is 100; it must be a collection"):
        LightningCallback("spectra", LOSS, {"train": []}, at_steps=100)
    with pytest.raises(ValueError, match="hesian"):
        LightningCallback("spectra", LOSS, {"train": [1]}, ["hesian"])
