"""Spectra measured during trainings by the Trainer of transformers."""

from pathlib import Path

import mlflow
import numpy as np
import pytest
import torch
import wandb
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments, set_seed

import hesspec
from hesspec.integrations import TransformersCallback

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*pin_memory.*:UserWarning"),
    # The model computes its loss itself, so hesspec says of which tensor G is.
    pytest.mark.filterwarnings("ignore:The loss is computed in the model:UserWarning"),
]


def model():
    config = GPT2Config(n_layer=1, n_head=1, n_embd=4, n_positions=4, vocab_size=7, bos_token_id=0, eos_token_id=0)
    return GPT2LMHeadModel(config)


@pytest.fixture
def problem(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    set_seed(0)
    tokens = torch.randint(7, (12, 4))
    samples = [{"input_ids": row, "labels": row} for row in tokens]
    yield model(), samples, {"train": [{"input_ids": tokens, "labels": tokens}]}
    wandb.finish()


def train(network, samples, callbacks, epochs=2, resume=None, **options):
    settings = {"logging_strategy": "no", "save_strategy": "epoch", "report_to": "none"} | options
    arguments = TrainingArguments(
        "out",
        num_train_epochs=epochs,
        per_device_train_batch_size=4,
        learning_rate=0.01,
        use_cpu=True,
        disable_tqdm=True,
        seed=1,
        **settings,
    )
    Trainer(network, arguments, train_dataset=samples, callbacks=callbacks).train(resume_from_checkpoint=resume)


def names():
    return sorted(path.name for path in Path("spectra").iterdir())


def test_spectra_are_those_of_the_epochs_and_the_training_is_the_same_without(problem):
    network, samples, data = problem
    start = {name: value.clone() for name, value in network.state_dict().items()}
    train(network, samples, [TransformersCallback("spectra", data, ["hess", "g"], at_epochs=[0, 2], steps=4)])
    end = {name: value.clone() for name, value in network.state_dict().items()}
    assert names() == [f"epoch-000{e}-train-{m}.nc" for e in (0, 2) for m in ("GaussNewton", "Hessian")]

    network.load_state_dict(end)
    exact = hesspec.spectrum(hesspec.Hessian(network.eval(), lambda out, _: out.loss, data["train"]), steps=4)
    found = hesspec.load("spectra/epoch-0002-train-Hessian.nc")
    assert np.allclose(found.nodes, exact.nodes, rtol=1e-5, atol=1e-5 * exact.norm)
    assert (found.attributes["epoch"], found.attributes["step"]) == (2, 6)

    network.load_state_dict(start)
    train(network, samples, [])
    assert all(torch.equal(value, end[name]) for name, value in network.state_dict().items())


def test_steps(problem):
    network, samples, data = problem
    callback = TransformersCallback("spectra", data, at_steps=[1, 4, 100], steps=3)
    train(network, samples, [callback], max_steps=5, save_strategy="no")
    assert names() == [f"step-{step:08}-train-Hessian.nc" for step in (1, 4)]
    found = hesspec.load("spectra/step-00000004-train-Hessian.nc").attributes
    assert (found["step"], found["checkpoint"], found["epoch"]) == (4, "step 4", pytest.approx(4 / 3))


@pytest.mark.parametrize("same", [True, False], ids=["the same weights", "other weights"])
def test_a_training_that_resumes_measures_what_is_missing_once(problem, same):
    network, samples, data = problem

    def resumed():
        callback = TransformersCallback("spectra", data, steps=3)
        train(model(), samples, [callback], epochs=3, resume="out/checkpoint-6")

    train(network, samples, [TransformersCallback("spectra", data, steps=3)], epochs=3)
    before = {name: Path(f"spectra/{name}").stat().st_mtime_ns for name in names()}
    assert names() == [f"epoch-000{epoch}-train-Hessian.nc" for epoch in range(4)]
    # As if the process had been killed between a checkpoint and its measurement.
    Path("spectra/epoch-0002-train-Hessian.nc").unlink()
    if not same:
        samples = samples[::-1]
    resumed()
    after = {name: Path(f"spectra/{name}").stat().st_mtime_ns for name in names()}
    assert before.keys() == after.keys()
    kept = {name for name in after if after[name] == before[name]}
    assert kept == {f"epoch-000{epoch}-train-Hessian.nc" for epoch in ((0, 1, 3) if same else (0, 1))}


def test_another_training_in_the_same_folder_is_refused(problem):
    network, samples, data = problem
    train(network, samples, [TransformersCallback("spectra", data, steps=3)], epochs=1)
    with pytest.raises(ValueError, match="belongs to another measurement: its weights is"):
        train(model(), samples, [TransformersCallback("spectra", data, steps=3)], epochs=1)


def test_spectra_are_logged_where_the_trainer_reports(problem):
    network, samples, data = problem
    mlflow.set_tracking_uri(f"file:{Path.cwd()}/mlflow")
    callback = TransformersCallback("spectra", data, at_epochs=[0, 1], steps=3, progress=False)
    report = {"report_to": ["tensorboard", "wandb", "mlflow"], "logging_strategy": "steps", "logging_steps": 1}
    train(network, samples, [callback], epochs=1, **report)
    wanted = {3 * epoch: hesspec.load(f"spectra/epoch-000{epoch}-train-Hessian.nc").norm for epoch in (0, 1)}
    events = EventAccumulator("out/runs/spectra").Reload()
    name = "hesspec/train/Hessian"
    assert {event.step: event.value for event in events.Scalars(f"{name}/norm")} == pytest.approx(wanted, rel=1e-6)
    assert [event.step for event in events.Images(f"{name}/spectrum")] == [0, 3]
    (run,) = mlflow.search_runs(search_all_experiments=True, output_format="list")
    history = mlflow.MlflowClient().get_metric_history(run.info.run_id, f"{name}/norm")
    assert {each.step: each.value for each in history} == wanted
    assert wandb.run.summary[f"{name}/norm"] == wanted[3]
    assert wandb.run.summary["train/global_step"] == 3  # the trainer's own row
