"""Arguments of `hesspec.spectrum` of wrong types: a sentence that names the argument."""

import numpy as np
import pytest
import torch

import hesspec

WRONG = [True, [], (1,), {}, object(), torch.ones(3)]


@pytest.mark.parametrize("value", WRONG, ids=lambda value: type(value).__name__)
@pytest.mark.parametrize("name", ["basis", "offload", "tolerance", "on_step", "snapshot", "every", "memory"])
def test_a_wrong_argument_is_named(name, value, tmp_path):
    options = {"steps": "auto" if name == "tolerance" else 4, "snapshot": tmp_path if name == "every" else None}
    with pytest.raises(ValueError, match=name):
        hesspec.spectrum(torch.eye(9), **{**options, name: value})


def test_numbers_of_any_size_are_durations_and_no_size_of_memory(tmp_path):
    assert hesspec.spectrum(torch.eye(9), steps=4, snapshot=tmp_path, every=10**400).exact
    assert hesspec.spectrum(torch.eye(9), steps="auto", tolerance=np.float32(0.1)).exact
    with pytest.raises(ValueError, match="more than any machine has"):
        hesspec.spectrum(torch.eye(9), steps=4, memory=10**400)
    with pytest.raises(ValueError, match="more than any machine has"):
        hesspec.spectrum(torch.eye(9), steps=4, memory="1" + "0" * 400)
