"""hesspec cost: what a spectrum of a hypothetical network takes, from formulas."""

import pytest
from rich.console import Console

from hesspec.cli import console


def rows(stdout):
    return {line.split("  ")[0].strip(): line for line in stdout.splitlines() if "  " in line}


SCALE = ("cost", "--params", "7e9", "--tokens", "1e9", "--devices", "256", "--memory", "80GB")


def test_the_cost_of_a_language_model(hesspec, here):
    result = hesspec(*SCALE, "--bandwidth", "400GB/s", "--matrix", "hess")
    assert result.exit_code == 0, result.stderr
    found = rows(result.stdout)
    for name in (
        "can be run",
        "way",
        "computation of a matvec",
        "communication of a matvec",
        "spectrum",
        "memory: basis",
        "devices needed",
    ):
        assert name in found, result.stdout
    assert found["parameters"].split()[1:] == ["7,000,000,000"]
    assert found["a device receives"].split()[-2:] == ["400", "GB/s"]
    assert "assumed" in found["a device computes"]


def test_the_cost_of_a_network_for_images(hesspec):
    options = ("--params", "25.6e6", "--samples", "1.28e6", "--flops-forward", "8.2e9", "--activations", "266MB")
    result = hesspec("cost", *options, "--flops", "100TFLOP/s", "--steps", "32")
    assert result.exit_code == 0, result.stderr
    found = rows(result.stdout)
    assert "1,280,000" in found["data"]
    assert found["Lanczos steps"].split()[2:] == ["32"]
    assert not [line for line in result.stdout.splitlines() if "cannot be run" in line]


def test_what_cannot_be_run_is_said_first_and_why(hesspec, monkeypatch):
    monkeypatch.setattr(console, "output", Console(width=100, markup=False, highlight=False, emoji=False))
    result = hesspec(*SCALE, "--bandwidth", "400GB/s")
    assert result.exit_code == 0, result.stderr
    said = " ".join(result.stdout.partition("parameters  ")[0].split())
    for name, size in (("G", "341 GB"), ("H", "509 GB")):
        assert f"{name} cannot be run. It needs {size} of each device, which has 80 GB" in said
    assert said.count("parameters can be sharded for the Hessian only") == 2
    assert "Hess cannot" not in said
    lines = result.stdout.splitlines()
    assert max(map(len, lines)) <= 100
    # No cell is folded: each row has a name.
    rows_ = [line for line in lines if "  " in line.strip() and "─" not in line]
    assert all(not line.startswith(" ") for line in rows_ if "Hess" not in line and line.split() != ["all"])
    found = rows(result.stdout)
    assert found["can be run"].split()[3:] == ["yes", "no", "no"]
    assert found["spectrum"].split()[1:] == ["8", "days", "–", "–"]


def test_too_few_devices_are_said_with_how_many_are_enough(hesspec):
    result = hesspec("cost", "--params", "7e9", "--tokens", "1e9", "--devices", "8", "--matrix", "hess")
    assert "; with 57 devices it fits." in " ".join(result.stdout.split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("cost", "--params", "7e9"), "The size of the data is missing"),
        (("cost", "--params", "7B", "--tokens", "1e9"), "params is '7B', which is not a number"),
        (("cost", "--params", "7e9", "--tokens", "many"), "tokens is 'many', which is not a number"),
        ((*SCALE, "--bandwidth", "400Gb/s"), "400 Gbit/s are 50 GB/s"),
    ],
)
def test_costs_that_cannot_be_computed(hesspec, arguments, message):
    result = hesspec(*arguments)
    assert result.exit_code == 1
    assert message in result.stderr
