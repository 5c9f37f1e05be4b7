"""Checkpoints: what is written can be read, by us and by others, and what does not fit is named."""

import copy
import pickle

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from hesspec.study import load_weights, read_metadata, save_checkpoint, small_cnn


def network(seed=0):
    torch.manual_seed(seed)
    return small_cnn(1, 10, 8)


class Tied(nn.Module):
    """An embedding whose weight is also that of the output layer."""

    def __init__(self, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.embedding = nn.Embedding(5, 3)
        self.head = nn.Linear(3, 5, bias=False)
        self.head.weight = self.embedding.weight


def assert_same_state(first, second):
    first, second = first.state_dict(), second.state_dict()
    assert list(first) == list(second)
    assert all(torch.equal(first[name], second[name]) for name in first)


# Writing and reading


def test_a_checkpoint_brings_back_weights_buffers_and_metadata(tmp_path):
    original, other = network(0), network(1)
    original(torch.randn(4, 1, 8, 8))  # moves the running statistics of batch norm
    path = tmp_path / "new" / "epoch-3.safetensors"
    save_checkpoint(path, original, {"epoch": "3", "data": "digits"})
    load_weights(other, path)
    assert_same_state(original, other)
    assert read_metadata(path) == {"epoch": "3", "data": "digits"}


def test_a_checkpoint_is_plain_safetensors(tmp_path):
    save_checkpoint(tmp_path / "a.safetensors", network(), {})
    state = network().state_dict()
    tensors = load_file(tmp_path / "a.safetensors")
    assert {name: value.shape for name, value in tensors.items()} == {
        name: value.shape for name, value in state.items()
    }
    assert read_metadata(tmp_path / "a.safetensors") == {}


def test_tensors_that_are_not_contiguous_are_saved(tmp_path):
    original = network()
    for parameter in original.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.to(memory_format=torch.channels_last)
    save_checkpoint(tmp_path / "a.safetensors", original, {})
    other = network(1)
    load_weights(other, tmp_path / "a.safetensors")
    assert_same_state(original, other)


def test_a_failed_write_leaves_the_earlier_file(tmp_path):
    path = tmp_path / "a.safetensors"
    save_checkpoint(path, network(), {"epoch": "1"})
    with pytest.raises(TypeError):
        save_checkpoint(path, network(), {"epoch": 2})
    assert read_metadata(path) == {"epoch": "1"}
    assert list(tmp_path.iterdir()) == [path]


def test_state_that_is_no_tensor_is_refused(tmp_path):
    class WithState(nn.Linear):
        def get_extra_state(self):
            return {"a": 1}

    with pytest.raises(ValueError, match="state '_extra_state' is an object of type 'dict'"):
        save_checkpoint(tmp_path / "a.safetensors", WithState(2, 2), {})


# Tied weights


def test_tied_weights_are_saved_under_both_names_and_stay_tied(tmp_path):
    original, other = Tied(0), Tied(1)
    save_checkpoint(tmp_path / "a.safetensors", original, {})
    load_weights(other, tmp_path / "a.safetensors")
    assert sorted(load_file(tmp_path / "a.safetensors")) == ["embedding.weight", "head.weight"]
    assert_same_state(original, other)
    assert other.head.weight is other.embedding.weight


@pytest.mark.parametrize("name", ["embedding.weight", "head.weight"])
def test_one_name_of_tied_weights_is_enough(tmp_path, name):
    original, other = Tied(0), Tied(1)
    save_file({name: original.head.weight.detach()}, tmp_path / "a.safetensors")
    load_weights(other, tmp_path / "a.safetensors")
    assert_same_state(original, other)


def test_tied_weights_that_differ_in_the_file_are_refused(tmp_path):
    tensors = {"embedding.weight": torch.zeros(5, 3), "head.weight": torch.ones(5, 3)}
    save_file(tensors, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match=r"'embedding.weight' and 'head.weight' are one tensor"):
        load_weights(Tied(), tmp_path / "a.safetensors")


# PyTorch's files


@pytest.mark.parametrize("suffix", [".pt", ".pth"])
@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"state_dict": state, "epoch": 3, "optimizer": {"state": {}}},
        lambda state: {f"module.{name}": value for name, value in state.items()},
    ],
    ids=["bare", "lightning", "data-parallel"],
)
def test_state_dicts_of_pytorch_are_read(tmp_path, suffix, wrap):
    original, other = network(0), network(1)
    torch.save(wrap(original.state_dict()), tmp_path / f"a{suffix}")
    load_weights(other, tmp_path / f"a{suffix}")
    assert_same_state(original, other)


def test_a_network_with_a_part_named_module_keeps_its_prefix(tmp_path):
    original, other = nn.DataParallel(network(0)), nn.DataParallel(network(1))
    torch.save(original.state_dict(), tmp_path / "a.pt")
    load_weights(other, tmp_path / "a.pt")
    assert_same_state(original, other)


def test_the_network_keeps_its_dtype(tmp_path):
    torch.save(network(0).half().state_dict(), tmp_path / "a.pt")
    other = network(1)
    load_weights(other, tmp_path / "a.pt")
    assert other[0].weight.dtype == torch.float32
    torch.testing.assert_close(other[0].weight, network(0)[0].weight, rtol=1e-3, atol=1e-3)


class Evil:
    """Whoever unpickles this calls `print`."""

    def __reduce__(self):
        return print, ("code of the file has run",)


def test_a_pickle_with_code_is_refused_and_not_run(tmp_path, capsys):
    torch.save({"state_dict": {}, "more": Evil()}, tmp_path / "a.pt")
    with pytest.raises(ValueError, match=r"Python objects other than tensors.*torch\.save"):
        load_weights(network(), tmp_path / "a.pt")
    (tmp_path / "b.pt").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(ValueError, match="Python objects other than tensors"):
        load_weights(network(), tmp_path / "b.pt")
    assert capsys.readouterr().out == ""


def test_a_whole_pickled_network_is_refused(tmp_path):
    torch.save(network(), tmp_path / "a.pt")
    with pytest.raises(ValueError, match="Python objects other than tensors"):
        load_weights(network(), tmp_path / "a.pt")


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("content", [b"", b"garbage", b"PK\x03\x04 no zip", b"\x80\x02."])
def test_damaged_files_are_refused(tmp_path, suffix, content):
    path = tmp_path / f"a{suffix}"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="damaged"):
        load_weights(network(), path)


def test_a_truncated_file_is_refused(tmp_path):
    save_checkpoint(tmp_path / "a.safetensors", network(), {})
    content = (tmp_path / "a.safetensors").read_bytes()
    (tmp_path / "a.safetensors").write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match="is damaged"):
        load_weights(network(), tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match="is damaged"):
        read_metadata(tmp_path / "a.safetensors")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (torch.zeros(3), "an object of type 'Tensor', not a state dict"),
        ({"epoch": 3}, "not a state dict: its entry 'epoch' is an object of type 'int'"),
        ({0: torch.zeros(3)}, "not a state dict: its entry 0"),
    ],
)
def test_content_that_is_no_state_dict_is_refused(tmp_path, content, message):
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(ValueError, match=message):
        load_weights(network(), tmp_path / "a.pt")


# What does not fit


def test_names_that_do_not_fit_are_given_with_the_nearest(tmp_path):
    state = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2)).state_dict()
    state["1.weights"] = state.pop("1.weight")
    torch.save(state, tmp_path / "a.pt")
    target = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2))
    with pytest.raises(ValueError, match="do not fit") as caught:
        load_weights(target, tmp_path / "a.pt")
    assert "the file lacks '1.weight' (nearest: '1.weights')" in str(caught.value)
    assert "the network lacks '1.weights' (nearest: '1.weight')" in str(caught.value)


def test_long_lists_of_names_are_cut(tmp_path):
    torch.save({"x": torch.zeros(1)}, tmp_path / "a.pt")
    with pytest.raises(ValueError, match=r"lacks '0.weight', '1.weight', '1.bias' and 17 more"):
        load_weights(network(), tmp_path / "a.pt")


def test_shapes_that_do_not_fit_are_given_and_the_network_stays(tmp_path):
    torch.save(small_cnn(1, 5, 8).state_dict(), tmp_path / "a.pt")
    target = network()
    before = copy.deepcopy(target)
    with pytest.raises(ValueError, match=r"'12.weight' of shape \(5, 320\) for \(10, 320\)"):
        load_weights(target, tmp_path / "a.pt")
    assert_same_state(target, before)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"There is no file .*a\.pt"):
        load_weights(network(), tmp_path / "a.pt")


def test_another_suffix_is_refused(tmp_path):
    (tmp_path / "a.h5").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"suffix '\.h5'; weights are read from '\.safetensors'"):
        load_weights(network(), tmp_path / "a.h5")
