"""The command line, called as a user calls it, in a folder of its own."""

import re
import sys

import pytest
import torch
from typer.testing import CliRunner

from hesspec.cli.app import app

OWN = """
import torch
from torch import nn


def linear(channels, classes, size):
    return nn.Sequential(nn.Flatten(), nn.Linear(channels * size**2, classes))


def unused(channels, classes, size):
    network = linear(channels, classes, size)
    network.register_parameter("spare", nn.Parameter(torch.zeros(3)))
    return network


def two_outputs(channels, size):
    return nn.Sequential(nn.Flatten(), nn.Linear(channels * size**2, 2))


class Points(torch.utils.data.Dataset):
    classes = ["left", "right"]

    def __len__(self):
        return 12

    def __getitem__(self, index):
        return torch.tensor([[[index / 6.0, 1.0], [0.5, index % 3.0]]]), int(index >= 6)


def points(split):
    return Points()
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The current folder, empty but for a module `own` with networks and data of the user's."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "own.py").write_text(OWN, encoding="utf-8")
    yield tmp_path
    sys.modules.pop("own", None)


@pytest.fixture
def hesspec(here):
    """Function from arguments to what the command printed and how it ended."""

    def run(*arguments):
        return CliRunner().invoke(app, [str(argument) for argument in arguments], prog_name="hesspec")

    return run


@pytest.fixture
def measured(hesspec):
    """Function that measures a linear network on a few digits, fast, with options of its own."""

    def run(*options, network="own:linear"):
        result = hesspec(
            "measure",
            network,
            "--data",
            "digits",
            "--samples-per-class",
            5,
            "--steps",
            24,
            "--dtype",
            "float64",
            *options,
        )
        assert result.exit_code == 0, result.output
        return result

    return run


@pytest.fixture(scope="session")
def example():
    """Function from a command to the arguments of the example in its help."""

    def arguments(*command):
        text = CliRunner().invoke(app, [*command, "--help"], prog_name="hesspec").output
        (line,) = re.findall(r"^ *hesspec (.+?) *$", text.partition("Example:")[2], re.MULTILINE)
        return line.split()

    return arguments


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    """Tests share their cores with others; see `hesspec.cli.demo_study` for what several threads then cost."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
