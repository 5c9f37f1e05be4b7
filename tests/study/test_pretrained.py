"""Pretrained weights of torchvision and timm, from caches made for these tests; nothing is downloaded."""

import huggingface_hub.constants
import pytest
import torch
from safetensors.torch import save_file

from hesspec.study import build_network, load_weights
from hesspec.study.networks.pretrained import pretrained_file

SIZE = {"channels": 3, "classes": 1000, "size": 32}


@pytest.fixture(autouse=True)
def caches(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hf"))
    return tmp_path


def assert_read(name, original):
    other = build_network(name, **SIZE)
    load_weights(other, pretrained_file(name))
    state = original.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in other.state_dict().items())


def test_torchvision(caches):
    name = "torchvision:squeezenet1_1"
    with pytest.raises(FileNotFoundError, match=r"squeezenet1_1-b8a52dc0\.pth', and hesspec downloads nothing"):
        pretrained_file(name)
    original = build_network(name, **SIZE)
    (caches / "checkpoints").mkdir()
    torch.save(original.state_dict(), caches / "checkpoints/squeezenet1_1-b8a52dc0.pth")
    assert_read(name, original)
    with pytest.raises(ValueError, match=r"of shape \(1000, 512, 1, 1\) for \(10, 512, 1, 1\)"):
        load_weights(build_network(name, channels=3, classes=10, size=32), pretrained_file(name))


def test_timm(caches):
    name = "timm:resnet10t.c3_in1k"
    with pytest.raises(FileNotFoundError, match=r"timm\.create_model\('resnet10t\.c3_in1k', pretrained=True\)"):
        pretrained_file(name)
    original = build_network(name, **SIZE)
    # As the Hub's library keeps what it has downloaded.
    folder = caches / "hf/models--timm--resnet10t.c3_in1k"
    (folder / "snapshots/1234").mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs/main").write_text("1234")
    save_file(original.state_dict(), folder / "snapshots/1234/model.safetensors")
    assert_read(name, original)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("small_cnn", "There are no pretrained weights of 'small_cnn': --pretrained is for"),
        ("torchvision:resnet19", "There is no torchvision classifier 'resnet19'"),
        ("timm:resnet19", "timm has no pretrained weights of 'resnet19'"),
    ],
)
def test_others_are_refused(name, message):
    with pytest.raises(ValueError, match=message):
        pretrained_file(name)
