"""Entry point of the program `hesspec`: list of commands, error messages and exit statuses."""

import os
import platform
import sys
import time
from importlib import import_module
from importlib.metadata import version
from typing import Annotated, Any, Final

import typer
from typer.core import TyperCommand, TyperGroup

from hesspec.backend.heap import keep_freed_memory
from hesspec.cli import console
from hesspec.cli.errors import is_reportable, sentence_of
from hesspec.cli.launch import launched_ranks, rank_here
from hesspec.cli.signals import catch_signals, end_if_asked, ending_of, was_asked

__all__ = ["COMMANDS", "app", "main"]

# Each command NAME is a module hesspec.cli.NAME with a function `command` and a working example, EXAMPLE. The module is
# imported when the command is called, as PyTorch takes seconds to import; the list of commands is printed from here.
COMMANDS: Final = {
    "demo": "Train a small network on scanned digits and measure its spectra.",
    "measure": "Measure the spectra of a network on a data set.",
    "plan": "Estimate the time and memory of a measurement.",
    "cost": "Estimate the cost of a spectrum of a hypothetical network.",
    "structure": "Explain the outliers of a spectrum by the class structure of G.",
    "laplace": "Compute the evidence and the calibration of a network.",
    "show": "Print spectra as tables, and plot them.",
    "compare": "Compare spectra, folders or studies, with errors.",
    "study": "Train networks at several sample sizes and measure their spectra.",
    "report": "Write an HTML page that shows all spectra in a folder.",
}

# Libraries whose versions results depend on.
RUNS_ON: Final = ("torch", "numpy", "scipy", "xarray", "h5py", "matplotlib")

# Commands that torchrun can start as several processes, each with a part of the data.
SHARED: Final = ("measure", "structure")
SILENCE: Final = 5  # seconds that a rank waits when another rank reports the error


class _Commands(TyperGroup):
    """Group of commands that reports errors caused by the input or the machine in one line, without a traceback."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.commands = {name: TyperCommand(name, help=summary) for name, summary in COMMANDS.items()}

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        """Import the command that is called."""
        name, command, rest = super().resolve_command(ctx, args)
        return name, command if name is None else _load(name), rest

    def invoke(self, ctx: Any) -> Any:
        """Run the command. If there are several ranks, only the first one prints."""
        rank = rank_here()
        console.output.quiet = console.notes.quiet = rank > 0
        try:
            with console.warnings_in_a_line():
                result = super().invoke(ctx)
            end_if_asked()
        except KeyboardInterrupt:
            raise _interrupted() from None
        except (typer.Exit, BrokenPipeError):
            raise  # everything is printed, or a reader such as `head` has closed the pipe: typer ends quietly
        except Exception as error:
            if was_asked():  # libraries replace KeyboardInterrupt by errors of their own
                raise _interrupted() from None
            if os.environ.get("HESSPEC_TRACEBACK") or not is_reportable(error):
                raise
            # All ranks see what is wrong with the command line; a later error occurs on one of them.
            console.notes.quiet = getattr(error, "reported", rank > 0 and not _ranks_have_met())
            console.say(f"Error: {sentence_of(error)}", "red")
            if console.notes.quiet:
                # The launcher stops all ranks when the first one ends: that must be the rank that reports.
                time.sleep(SILENCE)
            raise _ending(1) from None
        else:
            return result


def _interrupted() -> typer.Exit:
    """Print that a signal ends the command; return the exit."""
    sentence, status = ending_of()
    console.say(sentence, "yellow")
    return _ending(status)


def _ending(status: int) -> typer.Exit:
    """Return the exit with this status, or end the process at once if it belongs to a process group."""
    if launched_ranks() > 1 and _ranks_have_met():
        # The group cannot be destroyed, as other ranks may have ended, and Python may abort if it shuts down while the
        # threads of the group are running: with another status and another last line.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    return typer.Exit(status)


def _ranks_have_met() -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and bool(torch.distributed.is_initialized())


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["--help", "-h"]},
)


def _load(name: str) -> Any:
    """Import the module of a command and build the command from it."""
    module = import_module(f"hesspec.cli.{name}")
    alone = typer.Typer(add_completion=False, rich_markup_mode="markdown")
    alone.command(name, epilog=_example(module.EXAMPLE))(module.command)
    return typer.main.get_command(alone)


def _example(command: str) -> str:
    """Last part of a help page: a working example."""
    return f"Example:\n\n```\n{command}\n```"


def _print_version(wanted: bool) -> None:
    if wanted:
        # A line for each, for reports of faults: read from what is installed, as PyTorch takes seconds to import.
        console.output.print(f"hesspec {version('hesspec')}")
        console.output.print(
            f"Python {platform.python_version()} on {platform.platform(terse=True)}, {platform.machine()}"
        )
        for library in RUNS_ON:
            console.output.print(f"{library} {version(library)}")
        raise typer.Exit


@app.callback(epilog=_example("hesspec demo"))
def _hesspec(
    ctx: typer.Context,
    _version: Annotated[
        bool,
        typer.Option(
            "--version",
            help="Print the version, those of what it runs on, and exit.",
            callback=_print_version,
            is_eager=True,
        ),
    ] = False,
) -> None:
    """Measure the full eigenvalue spectrum of the curvature of deep networks, with error bounds.

    The curvature matrices are the Hessian of the mean cross-entropy loss (Hess), its Gauss-Newton part (G) and its
    residual part (H): Hess = G + H.

    `torchrun --nproc-per-node=N -m hesspec measure ...` distributes the data over N processes.

    Set HESSPEC_TRACEBACK=1 to see the full traceback of an error.
    """
    if launched_ranks() > 1 and ctx.invoked_subcommand not in SHARED:
        raise ValueError(
            f"hesspec {ctx.invoked_subcommand} runs in a single process and cannot be started by torchrun; "
            f"only {' and '.join(SHARED)} can."
        )


def main() -> None:
    """Run the command line."""
    catch_signals()
    with keep_freed_memory():
        app(prog_name="hesspec")
