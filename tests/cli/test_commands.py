"""The list of commands: each is a module of its own, which is imported when the command is called."""

import inspect
import pkgutil
import subprocess
import sys
from importlib import import_module

import pytest

import hesspec.cli
from hesspec.cli.app import COMMANDS

WITHOUT_PYTORCH = """
import sys

from hesspec.cli.app import main

sys.argv = ["hesspec", *sys.argv[1:]]
try:
    main()
finally:
    assert "torch" not in sys.modules
"""


@pytest.mark.parametrize(
    ("arguments", "status"),
    [((), 2), (("--help",), 0), (("--version",), 0), (("mesure",), 2), (("show", "no.nc"), 1)],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_a_command_that_needs_no_pytorch_does_not_wait_for_it(here, arguments, status):
    done = subprocess.run(  # noqa: S603 - our own program
        [sys.executable, "-c", WITHOUT_PYTORCH, *arguments], capture_output=True, text=True, check=False
    )
    assert "AssertionError" not in done.stderr
    assert done.returncode == status, done.stderr


HELP_WITHOUT_PYTORCH = """
import sys

from typer.testing import CliRunner

from hesspec.cli.app import COMMANDS, app

for name in COMMANDS:
    result = CliRunner().invoke(app, [name, "--help"], prog_name="hesspec")
    assert result.exit_code == 0, result.output
    assert "torch" not in sys.modules, name
"""


def test_the_help_of_no_command_waits_for_pytorch(here):
    done = subprocess.run(  # noqa: S603 - our own program
        [sys.executable, "-c", HELP_WITHOUT_PYTORCH], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_the_list_has_all_modules_that_are_commands():
    modules = {
        item.name: import_module(f"hesspec.cli.{item.name}") for item in pkgutil.iter_modules(hesspec.cli.__path__)
    }
    assert {name for name, module in modules.items() if hasattr(module, "EXAMPLE")} == set(COMMANDS)


def test_the_list_says_in_one_line_what_each_command_does(hesspec):
    lines = [line.strip("│ ") for line in hesspec("--help").output.splitlines()]
    for name, summary in COMMANDS.items():
        assert [line.split(maxsplit=1) for line in lines if line.startswith(f"{name} ")] == [[name, summary]]


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_explains_itself(hesspec, name):
    module = import_module(f"hesspec.cli.{name}")
    result = hesspec(name, "--help")
    assert result.exit_code == 0
    shown = " ".join(result.output.split())
    assert inspect.getdoc(module.command).splitlines()[0].replace("`", "") in shown
    assert module.EXAMPLE.splitlines()[0].startswith(f"hesspec {name}")
    assert module.EXAMPLE.splitlines()[0] in shown
