"""hesspec plan: what a measurement takes, before it is run."""

import pytest

PLAN = ("plan", "small_cnn", "--data", "digits", "--samples-per-class", "5")


def rows(stdout):
    return {line.split("  ")[0].strip(): line for line in stdout.splitlines() if "  " in line}


def test_a_plan_names_mode_times_and_memory_of_each_matrix(hesspec, here):
    before = sorted(here.iterdir())
    result = hesspec(*PLAN)
    assert result.exit_code == 0, result.stderr
    found = rows(result.stdout)
    for name in ("mode", "basis", "Lanczos steps", "set-up", "matvec", "rest of a step", "total", "peak memory"):
        assert name in found, result.stdout
    assert found["parameters"].split()[1:] == ["39,670"] * 3
    assert sorted(here.iterdir()) == before, "a plan writes nothing"


def test_a_plan_for_other_devices(hesspec):
    result = hesspec(*PLAN, "--matrix", "g", "--memory", "80GB", "--devices", "4")
    assert result.exit_code == 0, result.stderr
    assert "4, each as fast as this one" in " ".join(result.stdout.split())


def test_a_plan_for_an_accuracy(hesspec):
    result = hesspec(*PLAN, "--matrix", "g", "--accuracy", "0.5")
    assert result.exit_code == 0, result.stderr
    assert "expected accuracy" in result.stdout


def test_a_plan_that_cannot_be_made(hesspec):
    result = hesspec(*PLAN, "--memory", "1kB")
    assert result.exit_code == 1
    assert "One sample is predicted to need" in result.stderr


@pytest.mark.parametrize("arguments", [("plan",), ("plan", "small_cnn"), (*PLAN, "--tokens", "1e9")])
def test_a_plan_takes_a_network_and_its_data(hesspec, arguments):
    assert hesspec(*arguments).exit_code == 2
