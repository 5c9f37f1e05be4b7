"""Numbers whose interval says nothing are named as not known in the page's table."""

import numpy as np
import torch

import hesspec
from hesspec.report.collection import read_folder
from hesspec.report.sentences import glance

# Half of the eigenvalues are zero, the others of either sign: few are told from zero by ten steps, and they cancel.
VALUES = np.concatenate([np.zeros(200), 0.001 * np.random.default_rng(0).normal(size=200), [-6.0, 6.0]])


def row(folder, values, steps):
    hesspec.spectrum(torch.diag(torch.as_tensor(values)), steps=steps).save(folder / "spectrum.nc")
    (member,) = read_folder(folder).members
    return glance(member)


def test_intervals_that_say_nothing_are_not_shown(tmp_path):
    _, _, _, _, negative, _ = row(tmp_path, VALUES, 10)
    assert negative == "not known"


def test_what_is_known_is_shown(tmp_path):
    _, _, _, trace, negative, _ = row(tmp_path, np.linspace(-1, 3, 50), 50)
    assert trace.startswith("50.0")
    assert negative == "26%"
