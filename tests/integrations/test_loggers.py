"""Spectra written to experiment trackers, and read again by the trackers' own readers."""

import errno
import json
import struct
from dataclasses import replace

import mlflow
import numpy as np
import pytest
import torch
import wandb
from accelerate import Accelerator
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter
from wandb.proto import wandb_internal_pb2

import hesspec
from hesspec.errors import TrackerError
from hesspec.spectra.numbers import numbers_of

SIZE = 302


@pytest.fixture(scope="module")
def spectrum():
    diagonal = torch.cat([torch.linspace(-0.1, 0.1, SIZE - 2, dtype=torch.float64), torch.tensor([5.0, 9.0])])
    return hesspec.spectrum(torch.diag(diagonal), steps=32)


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def wanted(spectrum, name):
    constant = {"parameters", "steps", "probes", "exact"}
    return {f"{name}/{key}": value for key, value in numbers_of(spectrum).items() if key not in constant}


def test_tensorboard(spectrum):
    with SummaryWriter("events") as writer:
        for step in (0, 20):
            spectrum.log_to(writer, step=step)
    events = EventAccumulator("events").Reload()
    name = "hesspec/operator"
    found = {tag: events.Scalars(tag) for tag in events.Tags()["scalars"]}
    assert {tag: [each.value for each in values] for tag, values in found.items()} == {
        tag: [pytest.approx(value, rel=1e-6, abs=1e-30)] * 2 for tag, value in wanted(spectrum, name).items()
    }
    assert all([each.step for each in values] == [0, 20] for values in found.values())
    assert len(events.Images(f"{name}/spectrum")) == 2
    histogram = events.Histograms(f"{name}/eigenvalues")[0].histogram_value
    # All eigenvalues are counted, and the two outliers, which are known, in the bins of their values.
    assert sum(histogram.bucket) == pytest.approx(SIZE)
    assert (histogram.max, histogram.bucket[-1]) == (pytest.approx(9.0), pytest.approx(1.0))
    assert histogram.bucket[np.searchsorted(histogram.bucket_limit, 5.0)] == pytest.approx(1.0)
    logarithms = events.Histograms(f"{name}/log10_magnitudes")[0].histogram_value
    assert logarithms.max == pytest.approx(np.log10(9.0))


def records_of(content):
    """Records of a file in the log format of LevelDB, which W&B writes: parts of them, in blocks of 32 KiB."""
    place, whole = 7, b""
    while place + 7 <= len(content):
        left = 32768 - place % 32768
        if left < 7:
            place += left
            continue
        size, kind = struct.unpack_from("<HB", content, place + 4)
        whole += content[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in (1, 4):  # the whole record, or its last part
            yield whole
            whole = b""


def rows_of(file):
    """Rows of a W&B run that was written offline."""
    rows = []
    for data in records_of(file.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        if record.WhichOneof("record_type") == "history":
            items = {item.key or "/".join(item.nested_key): item.value_json for item in record.history.item}
            rows.append({key: json.loads(value) for key, value in items.items()})
    return rows


def test_wandb_loses_no_row_whatever_the_steps(spectrum, tmp_path):
    with wandb.init(mode="offline", dir=tmp_path) as run:
        for loss in (3.0, 2.0, 1.0):
            run.log({"loss": loss})
        # A step that W&B would drop, as it is below the run's own, and one that is beyond it.
        spectrum.log_to(run, step=1, name="epochs")
        spectrum.log_to(run, step=50, name="steps")
        run.log({"loss": 0.5}, step=50)
    wandb.teardown()  # the process that writes the file ends; until then it may not have written all of it
    (file,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    rows = rows_of(file)
    assert [row["loss"] for row in rows if "loss" in row] == [3.0, 2.0, 1.0, 0.5]
    for name, step in (("epochs", 1), ("steps", 50)):
        (row,) = [row for row in rows if f"{name}/step" in row]
        assert row[f"{name}/step"] == step
        assert {key: row[key] for key in wanted(spectrum, name)} == pytest.approx(wanted(spectrum, name))
        assert sum(row[f"{name}/eigenvalues/values"]) == pytest.approx(SIZE)
        assert row[f"{name}/spectrum/_type"] == "image-file"


def test_mlflow(spectrum, tmp_path):
    mlflow.set_tracking_uri(f"file:{tmp_path}/store")
    with mlflow.start_run() as run:
        spectrum.log_to(mlflow.active_run(), step=7)
    client, name = mlflow.MlflowClient(), "hesspec/operator"
    assert client.get_run(run.info.run_id).data.metrics == wanted(spectrum, name)
    assert [each.step for each in client.get_metric_history(run.info.run_id, f"{name}/trace")] == [7]
    assert [each.path for each in client.list_artifacts(run.info.run_id, name)] == [f"{name}/spectrum-00000007.png"]
    with pytest.raises(ValueError, match="An MlflowClient does not know its run"):
        spectrum.log_to(client)


def test_accelerate_s_trackers(spectrum):
    accelerator = Accelerator(log_with="tensorboard", project_dir=".", cpu=True)
    accelerator.init_trackers("events")
    spectrum.log_to(accelerator, step=2, name="mine")
    accelerator.end_training()
    events = EventAccumulator("events").Reload()
    assert [each.step for each in events.Scalars("mine/outliers")] == [2]


def test_names_are_those_of_split_and_matrix(spectrum):
    class Writer:
        def __init__(self):
            self.names = set()

        def add_scalar(self, name, *_):
            self.names.add(name.rpartition("/")[0])

        add_figure = add_histogram_raw = lambda *_, **__: None

    writer = Writer()
    replace(spectrum, attributes={"split": "test", "matrix": "GaussNewton"}).log_to([writer])
    assert writer.names == {"hesspec/test/GaussNewton"}


@pytest.mark.parametrize(
    ("writer", "step", "message"),
    [
        (object(), 0, "cannot be written to an object: pass a TensorBoard SummaryWriter"),
        (None, 0, "cannot be written to None"),
        ([], -1, "step is -1; it must be a nonnegative integer"),
        ([], 1.5, r"step is 1\.5"),
    ],
)
def test_what_cannot_be_used_is_refused(spectrum, writer, step, message):
    with pytest.raises(ValueError, match=message):
        spectrum.log_to(writer, step=step)


class FullDisk:
    """A writer whose disk is full."""

    def add_scalar(self, *_):
        raise OSError(errno.ENOSPC, "No space left on device")

    add_figure = add_histogram_raw = add_scalar


def test_a_tracker_that_fails_is_named_and_the_others_have_the_spectrum(spectrum):
    with SummaryWriter("events") as writer, pytest.raises(TrackerError) as caught:
        spectrum.log_to([FullDisk(), writer], step=3, name="mine")
    assert "'mine' of step 3 was not logged to FullDisk: OSError: [Errno 28] No space left" in str(caught.value)
    assert isinstance(caught.value.__cause__, OSError)
    assert EventAccumulator("events").Reload().Scalars("mine/trace")[0].step == 3


def test_a_writer_that_is_not_known_is_refused_before_anything_is_logged(spectrum):
    with SummaryWriter("events") as writer, pytest.raises(ValueError, match="cannot be written to an object"):
        spectrum.log_to([writer, object()], step=0)
    assert EventAccumulator("events").Reload().Tags()["scalars"] == []
