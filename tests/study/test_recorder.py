"""Measuring inside of a user's own training loop."""

import copy
import errno

import accelerate
import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from torch import nn

import hesspec
from hesspec.report import write_report
from hesspec.study import SpectrumRecorder


@pytest.fixture
def problem():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.Linear(6, 3))
    data = [(torch.randn(12, 4), torch.randint(3, (12,)))]
    return model, data


def loop(model, data, record, epochs=3):
    """A loop of the user's own, with dropout and with an optimiser that has a state."""
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    loss_fn = nn.CrossEntropyLoss()
    torch.manual_seed(1)
    for epoch in range(epochs):
        model.train()
        for inputs, targets in data:
            optimizer.zero_grad()
            loss_fn(model(inputs), targets).backward()
            optimizer.step()
        record(model, epoch)
    return [parameter.detach().clone() for parameter in model.parameters()]


def test_the_training_is_the_same_with_it_as_without(problem, tmp_path):
    model, data = problem
    start = {name: value.clone() for name, value in model.state_dict().items()}
    without = loop(model, data, lambda *_: None)
    model.load_state_dict(start)
    record = SpectrumRecorder(tmp_path, nn.CrossEntropyLoss(), {"train": data}, ["hess", "g"], steps=8)

    assert all(torch.equal(a, b) for a, b in zip(without, loop(model, data, record), strict=True))


def test_modes_and_gradients_are_left_as_they_were(problem, tmp_path):
    model, data = problem
    model.train()
    model[1].eval()  # a frozen batch norm
    nn.CrossEntropyLoss()(model(data[0][0]), data[0][1]).backward()
    gradients = [parameter.grad.clone() for parameter in model.parameters()]
    SpectrumRecorder(tmp_path, nn.CrossEntropyLoss(), {"train": data}, steps=4)(model, 0)

    assert [module.training for module in model] == [True, False, True, True]
    assert model.training
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), gradients, strict=True))


def test_spectra_are_those_of_the_model_then_at_the_epochs_asked_for(problem, tmp_path):
    model, data = problem
    seen = {}
    record = SpectrumRecorder(
        tmp_path, nn.CrossEntropyLoss(), {"train": data, "test": data}, ["hess"], at=[0, 2], steps=20
    )

    def both(model, epoch):
        found = record(model, epoch)
        model.eval()
        exact = hesspec.spectrum(hesspec.Hessian(model, nn.CrossEntropyLoss(), data), steps=20)
        seen[epoch] = (found, exact)

    loop(model, data, both)

    assert {epoch: sorted(found) for epoch, (found, _) in seen.items()} == {
        0: [("test", "Hessian"), ("train", "Hessian")],
        1: [],
        2: [("test", "Hessian"), ("train", "Hessian")],
    }
    for epoch in (0, 2):
        found, exact = seen[epoch]
        assert np.array_equal(found["train", "Hessian"].eigenvalues, exact.eigenvalues)
        kept = hesspec.load(tmp_path / f"epoch-{epoch:04}-train-Hessian.nc")
        assert (kept.attributes["epoch"], kept.attributes["split"]) == (epoch, "train")
    assert write_report(tmp_path).is_file()


def test_what_is_there_is_not_measured_again(problem, tmp_path):
    model, data = problem
    record = SpectrumRecorder(tmp_path, nn.CrossEntropyLoss(), {"train": data}, ["g"], steps=4)
    assert record(model, 0)
    assert not record(model, 0)


def test_an_error_leaves_the_model_in_its_mode(problem, tmp_path):
    model, _ = problem
    model.train()
    record = SpectrumRecorder(tmp_path, nn.CrossEntropyLoss(), {"train": []}, steps=4)
    with pytest.raises(ValueError, match="empty"):
        record(model, 0)
    assert model.training


def test_no_data_is_refused(tmp_path):
    with pytest.raises(ValueError, match="There is no data"):
        SpectrumRecorder(tmp_path, nn.CrossEntropyLoss(), {})


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        ({"steps": 5}, "its steps is 4, but here it is 5"),
        ({"seed": 1}, "its seed is 0, but here it is 1"),
        ({"loss_fn": nn.CrossEntropyLoss(label_smoothing=0.3)}, "its loss is "),
        ({"params": ["0.*"]}, "its number of parameters is 63, but here it is 30"),
    ],
)
def test_a_spectrum_that_was_measured_in_another_way_is_refused(problem, tmp_path, change, difference):
    model, data = problem
    how = {"loss_fn": nn.CrossEntropyLoss(), "steps": 4, "seed": 0}
    SpectrumRecorder(tmp_path, data={"train": data}, **how)(model, 0)
    other = SpectrumRecorder(tmp_path, data={"train": data}, **{**how, **change})

    with pytest.raises(ValueError, match=f"epoch-0000-train-Hessian.nc' belongs to another measurement: {difference}"):
        other(model, 0)


def test_a_spectrum_of_another_model_or_of_other_data_is_refused(problem, tmp_path):
    model, data = problem
    SpectrumRecorder(tmp_path, nn.CrossEntropyLoss(), {"train": data}, steps=4)(model, 0)
    inputs, targets = data[0]

    with pytest.raises(ValueError, match="belongs to another measurement: its data is "):
        SpectrumRecorder(tmp_path, nn.CrossEntropyLoss(), {"train": [(inputs + 1, targets)]}, steps=4)(model, 0)
    nn.init.zeros_(model[0].bias)
    with pytest.raises(ValueError, match="belongs to another measurement: its weights is "):
        SpectrumRecorder(tmp_path, nn.CrossEntropyLoss(), {"train": data}, steps=4)(model, 0)
    assert [path.name for path in tmp_path.iterdir()] == ["epoch-0000-train-Hessian.nc"]


def test_a_resumed_training_replaces_spectra_of_weights_that_it_did_not_come_to_again(problem, tmp_path):
    model, data = problem

    def recorder(**options):
        return SpectrumRecorder(tmp_path, nn.CrossEntropyLoss(), {"train": data}, steps=4, **options)

    first = recorder()
    before = first(model, 0)["train", "Hessian"]
    nn.init.zeros_(model[0].bias)
    with pytest.raises(ValueError, match="belongs to another measurement: its weights is "):
        first(model, 0)  # the same loop twice at the same epoch
    resumed = recorder()
    resumed.training_id = first.training_id
    assert resumed(model, 0)["train", "Hessian"].norm != before.norm
    assert not resumed(model, 0)
    other_steps = SpectrumRecorder(tmp_path, nn.CrossEntropyLoss(), {"train": data}, steps=5)
    other_steps.training_id = first.training_id
    with pytest.raises(ValueError, match="its steps is 4, but here it is 5"):
        other_steps(model, 0)


def test_parts_of_epochs_are_named_by_their_steps(problem, tmp_path):
    model, data = problem
    record = SpectrumRecorder(tmp_path, nn.CrossEntropyLoss(), {"train": data}, steps=4)
    with pytest.raises(ValueError, match=r"The epoch is 0\.5, which is not complete; give the number of steps"):
        record(model, 0.5)
    record(model, 0.5, step=12)
    attributes = hesspec.load(tmp_path / "step-00000012-train-Hessian.nc").attributes
    assert [attributes[name] for name in ("epoch", "step", "checkpoint")] == [0.5, 12, "step 12"]
    record(model, 2.25, step=54)
    assert "step 54 (epoch 2.25)" in write_report(tmp_path).read_text()
    assert list(hesspec.study.open(tmp_path).step.values) == [12, 54]


def test_spectra_that_were_there_are_logged_too(problem, tmp_path):
    model, data = problem

    class Writer:
        steps = ()

        def add_scalar(self, name, _, step):
            if name == "hesspec/train/Hessian/norm":
                self.steps += (step,)

        add_figure = add_histogram_raw = lambda *_, **__: None

    record, writer = SpectrumRecorder(tmp_path, nn.CrossEntropyLoss(), {"train": data}, steps=4), Writer()
    for step in (None, 6):
        record(model, 2, step=step, log_to=writer)
    assert writer.steps == (2, 6)


def test_a_tracker_whose_disk_is_full_ends_no_training_and_loses_no_spectrum(problem, tmp_path):
    model, data = problem
    without = loop(*copy.deepcopy(problem), lambda *_: None)

    class FullDisk:
        def add_scalar(self, *_):
            raise OSError(errno.ENOSPC, "No space left on device")

        add_figure = add_histogram_raw = add_scalar

    record = SpectrumRecorder(tmp_path, nn.CrossEntropyLoss(), {"train": data}, ["g", "hess"], steps=4)
    with pytest.warns(UserWarning, match=r"'hesspec/train/.*' of step [012] was not logged to FullDisk") as warned:
        trained = loop(model, data, lambda model, epoch: record(model, epoch, log_to=FullDisk()))
    assert all(torch.equal(a, b) for a, b in zip(trained, without, strict=True))
    assert len(warned) == 6
    for path in sorted(tmp_path.glob("*.nc")):
        assert sum(f"the spectrum is in {str(path)!r}" in str(each.message) for each in warned) == 1
        assert hesspec.load(path).matvecs == 5


def test_the_folder_opens_as_one_dataset(problem, tmp_path):
    model, data = problem
    record = SpectrumRecorder(tmp_path, nn.CrossEntropyLoss(), {"test": data, "train": data}, ["g", "hess"], steps=20)
    found = {epoch: record(model, epoch, step=10 * epoch) for epoch in (0, 3)}
    (tmp_path / "damaged.nc").write_bytes(b"nothing")
    dataset = hesspec.study.open(tmp_path)
    assert [list(dataset[name].values) for name in ("epoch", "step", "split", "matrix")] == [
        [0, 3],
        [0, 30],
        ["train", "test"],
        ["Hessian", "GaussNewton"],
    ]
    for epoch, spectra in found.items():
        for (split, matrix), spectrum in spectra.items():
            one = dataset.sel(epoch=epoch, split=split, matrix=matrix)
            assert np.array_equal(one.eigenvalue.values[: spectrum.eigenvalues.size], spectrum.eigenvalues)
            assert (float(one.trace), int(one.outliers)) == (spectrum.trace, spectrum.outliers.size)
            assert ((one.track >= 0) == one.outlier).all()
    assert "damaged.nc" in dataset.attrs["unread"]


def test_a_folder_of_several_trainings_or_of_none_is_not_opened(problem, tmp_path):
    with pytest.raises(FileNotFoundError, match="no study in .*, and no spectra of a training"):
        hesspec.study.open(tmp_path)
    model, data = problem
    SpectrumRecorder(tmp_path, nn.CrossEntropyLoss(), {"train": data}, steps=3)(model, 0)
    (tmp_path / "other.nc").write_bytes((tmp_path / "epoch-0000-train-Hessian.nc").read_bytes())
    with pytest.raises(ValueError, match="are both of epoch 0, split 'train' and matrix 'Hessian'"):
        hesspec.study.open(tmp_path)


def test_mixed_precision_of_accelerate_is_not_part_of_the_curvature(problem, tmp_path):
    model, data = problem
    # Other tests of this process may have used Accelerate in another precision, which is a state of the process.
    AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = accelerate.Accelerator(cpu=True, mixed_precision="bf16")
    prepared = accelerator.prepare(model)
    record = SpectrumRecorder(tmp_path, nn.CrossEntropyLoss(), {"train": data}, steps=8)
    found = record(prepared, 0)["train", "Hessian"]
    plain = hesspec.spectrum(
        hesspec.Hessian(
            accelerator.unwrap_model(prepared, keep_fp32_wrapper=False).eval(), nn.CrossEntropyLoss(), data
        ),
        steps=8,
    )
    assert np.allclose(found.ritz_values, plain.ritz_values, rtol=0, atol=1e-5 * plain.norm)
