"""Weights in the formats of other libraries, written by them."""

import argparse
import json
import os
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from safetensors.torch import save_file
from torch import nn
from torch.optim.swa_utils import AveragedModel
from transformers import GPT2Config, GPT2LMHeadModel

from hesspec.study import load_weights


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def assert_same_state(a, b):
    first, second = a.state_dict(), b.state_dict()
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


class Settings(dict):
    """A class of the user's own, as hyperparameters may have it."""


class Lit(LightningModule):
    def __init__(self, settings=None, space=None):
        super().__init__()
        self.save_hyperparameters()
        self.model = network()
        self.loss = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0]))

    def training_step(self, batch, _):
        return self.loss(self.model(batch[0]), batch[1])

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters())
        return [optimizer], [torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=10)]


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_checkpoint_of_lightning_with_any_hyperparameters():
    lit = Lit(Settings(width=3), argparse.Namespace(folder="x"))
    trainer = Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[ModelCheckpoint(".", filename="end")],
    )
    batches = [(torch.randn(8, 3), torch.randint(2, (8,)))]
    trainer.fit(lit, torch.utils.data.DataLoader(batches, batch_size=None))
    with pytest.raises(Exception, match="Settings|Namespace"):
        torch.load("end.ckpt", weights_only=True)
    other = network(1)
    load_weights(other, "end.ckpt")
    assert_same_state(lit.model, other)


class Evil:
    def __init__(self, call=print):
        self.call = call

    def __reduce__(self):
        return self.call, ("code of the file has run",)


def test_code_in_a_checkpoint_is_not_run(capsys):
    torch.save({"state_dict": network().state_dict(), "callbacks": Evil()}, "a.ckpt")
    other = network(1)
    load_weights(other, "a.ckpt")
    assert_same_state(network(), other)
    torch.save({"state_dict": network().state_dict(), "callbacks": Evil(os.mkdir)}, "b.ckpt")
    with pytest.raises(ValueError, match="damaged or contains Python objects other than tensors"):
        load_weights(other, "b.ckpt")
    torch.save({"state_dict": {"0.weight": Evil()}}, "c.ckpt")
    with pytest.raises(
        ValueError, match=r"its entry '0\.weight' is an object of type 'OrderedDict', but should be a tensor"
    ):
        load_weights(other, "c.ckpt")
    assert capsys.readouterr().out == ""
    assert sorted(path.name for path in Path().iterdir()) == ["a.ckpt", "b.ckpt", "c.ckpt"]


def prefixed(state, prefix):
    return OrderedDict((f"{prefix}{name}", value) for name, value in state.items())


@pytest.mark.parametrize(
    "content",
    [
        lambda state: prefixed(state, "_orig_mod."),
        lambda state: prefixed(state, "module._orig_mod."),
        lambda state: prefixed(state, "model."),
        lambda state: prefixed(state, "network."),
        lambda state: {"model": state, "args": {"lr": 0.1}, "epoch": 3},
        lambda state: {"model": prefixed(state, "module."), "model_ema": state},
        lambda state: {"state_dict_ema": state, "epoch": 3},
        lambda state: {"ema": {"module": state, "decay": 0.99}},
        lambda state: {"state_dict": {**prefixed(state, "backbone."), "head.weight": torch.ones(2)}},
        lambda state: {"state_dict": {**prefixed(state, "model."), **prefixed(state, "teacher.")}},
        lambda state: {**prefixed(state, "module."), "n_averaged": torch.tensor(4)},
    ],
    ids=[
        "compiled",
        "both",
        "model",
        "network",
        "in model",
        "with ema",
        "ema",
        "nested",
        "part",
        "student",
        "averaged",
    ],
)
def test_prefixes_and_entries(content):
    torch.save(content(network().state_dict()), "a.pt")
    other = network(1)
    load_weights(other, "a.pt")
    assert_same_state(network(), other)


def test_the_moving_average_is_read_if_it_is_asked_for():
    averaged = AveragedModel(network(2))
    torch.save({"model": network().state_dict(), "model_ema": averaged.state_dict()}, "a.pt")
    other = network(1)
    load_weights(other, "a.pt")
    assert_same_state(network(), other)
    load_weights(other, "a.pt", entry="model_ema")
    assert_same_state(network(2), other)
    with pytest.raises(ValueError, match="There is no entry of the checkpoint 'model_em'; did you mean 'model_ema'"):
        load_weights(other, "a.pt", entry="model_em")


def test_wrapped_networks_take_plain_weights():
    torch.save(network().state_dict(), "a.pt")
    for wrap in (nn.DataParallel, torch.compile):
        other = network(1)
        load_weights(wrap(other), "a.pt")
        assert_same_state(network(), other)


def test_parts_that_cannot_be_told_apart_are_refused():
    torch.save(
        {"a.weight": torch.ones(2, 3), "a.bias": torch.ones(2), "b.weight": torch.zeros(2, 3), "b.bias": torch.ones(2)},
        "a.pt",
    )
    with pytest.raises(ValueError, match=r"the file lacks 'weight' .*, 'bias' .*; the network lacks 'a\.weight'"):
        load_weights(nn.Linear(3, 2), "a.pt")


def gpt(seed):
    torch.manual_seed(seed)
    return GPT2LMHeadModel(GPT2Config(n_layer=2, n_head=1, n_embd=8, n_positions=4, vocab_size=50))


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_sharded_folder_of_transformers_with_tied_weights():
    original, other = gpt(0), gpt(1)
    original.save_pretrained("folder", max_shard_size="3KB")
    (index,) = Path("folder").glob("*.index.json")
    assert len(list(Path("folder").glob("*.safetensors"))) > 2
    for place in ("folder", index):
        load_weights(other, place)
        assert_same_state(original, other)
        other = gpt(1)
    original.save_pretrained("whole")
    load_weights(other, "whole")
    assert_same_state(original, other)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ({"weight_map": {"weight": "../a.safetensors"}}, r"has weights in '\.\./a\.safetensors'; only files"),
        ({"weight_map": {"weight": "/etc/a.safetensors"}}, "only files"),
        ({"weight_map": {"weight": "a.pt"}}, "only files"),
        ({"weight_map": {"weight": 3}}, "has no mapping 'weight_map' to files"),
        ([], "has no mapping 'weight_map' to files"),
        ({"weight_map": {"other": "a.safetensors"}}, "lacks 'other', which the index in"),
    ],
)
def test_damaged_indices_are_refused(tmp_path, index, message):
    folder = tmp_path / "folder"
    folder.mkdir()
    save_file(nn.Linear(3, 2).state_dict(), folder / "a.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=message):
        load_weights(nn.Linear(3, 2), folder)


def test_folders_without_one_set_of_weights_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"has 0 files named \*\.safetensors and 0 named"):
        load_weights(nn.Linear(3, 2), tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"weight": "b.safetensors"}}')
    with pytest.raises(FileNotFoundError, match=r"There is no file .*b\.safetensors"):
        load_weights(nn.Linear(3, 2), tmp_path)
