"""Nothing that hesspec reads is unpickled: any use of pickle fails while everything that there is to read is read."""

import _pickle
import gzip
import pickle
import shelve
import struct
from pathlib import Path

import joblib
import numpy as np
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import hesspec
from hesspec.cli.app import app
from hesspec.report import write_report
from hesspec.study import load_dataset, load_study, load_weights, read_metadata, run_study
from hesspec.study.opening import open_study
from hesspec.study.store import tasks_of

STUDY = """\
datasets: digits
networks: small_cnn
samples_per_class: [2]
test_samples_per_class: 2
training: {epochs: 3, learning_rates: [0.01], batch_size: 8}
measure: {epochs: [0, end], matrices: [g], splits: [train], steps: 3, structure: true}
"""


class StopHereError(Exception):
    pass


def forbid(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("something was unpickled")

    load = torch.load

    def weights_only(*arguments, **options):
        assert options.get("weights_only") is True
        return load(*arguments, **options)

    for module, name in [
        *((pickle, name) for name in ("load", "loads", "Unpickler", "_load", "_loads", "_Unpickler")),
        *((_pickle, name) for name in ("load", "loads", "Unpickler")),
        *((np, name) for name in ("load", "fromfile")),
        (joblib, "load"),
        (shelve, "open"),
    ]:
        monkeypatch.setattr(module, name, refuse)
    # PyTorch's reader of tensors alone, which has an unpickler of its own that knows no other objects.
    monkeypatch.setattr(torch, "load", weights_only)


def write_idx(path, array):
    header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    path.write_bytes(gzip.compress(header + array.astype(np.uint8).tobytes()))


@pytest.fixture(scope="module")
def half_done(tmp_path_factory):
    """A study that has ended in its training, with a state from which it can resume."""
    folder = tmp_path_factory.mktemp("study")
    (folder / "study.yaml").write_text(STUDY)

    def stop(what, _done, _total):
        if list((folder / "results").rglob("optimizer-*.safetensors")):
            raise StopHereError(what)

    with pytest.raises(StopHereError):
        run_study(load_study(folder / "study.yaml"), folder / "results", on_progress=stop)
    return folder


@pytest.mark.long
def test_a_study_and_all_of_its_results(half_done, monkeypatch):
    folder = half_done / "results"
    with monkeypatch.context() as patched:
        forbid(patched)
        study = load_study(half_done / "study.yaml")
        # It resumes: weights, state of the training, records.
        run_study(study, folder)
        (task,) = tasks_of(study, folder)
        for file in folder.rglob("*.nc"):
            assert len(hesspec.load(file).attributes) > 5
        assert read_metadata(task.best.weights(3))
        assert open_study(folder).sizes
        assert write_report(folder).stat().st_size > 1e5
        shown = CliRunner().invoke(app, ["show", *map(str, folder.rglob("*.nc"))])
        assert shown.exit_code == 0, shown.output


@pytest.mark.parametrize("suffix", ["safetensors", "pt", "pth", "ckpt"])
def test_weights(tmp_path, monkeypatch, suffix):
    network, other = nn.Linear(3, 2), nn.Linear(3, 2)
    path = Path(tmp_path / f"weights.{suffix}")
    if suffix == "safetensors":
        hesspec.study.save_checkpoint(path, network, {})
    else:
        torch.save(network.state_dict(), path, _use_new_zipfile_serialization=suffix != "pth")
    forbid(monkeypatch)
    load_weights(other, path)
    assert torch.equal(network.weight, other.weight)


def test_data_sets(tmp_path, monkeypatch):
    random = np.random.default_rng(0)
    for prefix in ("t10k", "train"):
        write_idx(tmp_path / f"{prefix}-images-idx3-ubyte.gz", random.integers(0, 256, (40, 28, 28)))
        write_idx(tmp_path / f"{prefix}-labels-idx1-ubyte.gz", np.arange(40) % 10)
    forbid(monkeypatch)
    assert load_dataset("mnist", "train", folder=tmp_path).targets.shape == (40,)
    assert load_dataset("digits", "train").targets.shape == (1437,)
