"""The program `hesspec`: its commands, each in a file of its own, and how a command ends."""

import os
import sys
import time
from importlib import import_module
from importlib.metadata import version
from typing import Annotated, Any, Final

import typer
from typer.core import TyperCommand, TyperGroup

from hesspec._heap import kept_heap
from hesspec.cli import console
from hesspec.cli.errors import is_reportable, sentence_of
from hesspec.cli.launch import launched_ranks, rank_here
from hesspec.cli.signals import catch_signals, end_if_asked, ending_of, was_asked

__all__ = ["COMMANDS", "app", "main"]

# The command NAME is the module hesspec.cli.NAME: its function `command`, and EXAMPLE, a line that works when it is
# copied. PyTorch takes seconds to import, so that the module is loaded when the command is run; for the list of
# commands, here is what they do.
COMMANDS: Final = {
    "demo": "Train a small network on scanned digits and measure its spectra.",
    "measure": "Measure the spectra of a network on a data set.",
    "plan": "Estimate the time and memory of a measurement.",
    "structure": "Explain the outliers by the class structure of the data.",
    "show": "Print spectra as tables, or draw them.",
    "study": "Train networks at several sample sizes and measure their spectra.",
    "report": "Write a page that shows all spectra of a folder.",
}

# Those that run as one process for each share of the data.
SHARED: Final = ("measure", "structure")
SILENCE: Final = 5  # seconds that a rank whose error another one reports leaves to that one


class _Commands(TyperGroup):
    """Commands that end with one line, and not with a traceback, where the fault is the user's or the machine's."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.commands = {name: TyperCommand(name, help=summary) for name, summary in COMMANDS.items()}

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        """Load the command that is called."""
        name, command, rest = super().resolve_command(ctx, args)
        return name, command if name is None else _load(name), rest

    def invoke(self, ctx: Any) -> Any:
        """Run the command; where there are several ranks, the first one speaks for all."""
        rank = rank_here()
        console.output.quiet = console.notes.quiet = rank > 0
        try:
            with console.warnings_in_a_line():
                result = super().invoke(ctx)
            end_if_asked()
        except KeyboardInterrupt:
            raise _interrupted() from None
        except (typer.Exit, BrokenPipeError):
            raise  # all is said, or a reader such as `head` has seen enough: typer ends quietly
        except Exception as error:
            if was_asked():  # libraries make errors of their own of it
                raise _interrupted() from None
            if os.environ.get("HESSPEC_TRACEBACK") or not is_reportable(error):
                raise
            # What is wrong with the command is seen by all ranks, what goes wrong later by one of them.
            console.notes.quiet = getattr(error, "reported", rank > 0 and not _ranks_have_met())
            console.say(f"Error: {sentence_of(error)}", "red")
            if console.notes.quiet:
                # The launcher ends all ranks as soon as one has ended: the one that speaks is to be that one.
                time.sleep(SILENCE)
            raise _ending(1) from None
        else:
            return result


def _interrupted() -> typer.Exit:
    """Say that a signal ends the command, and what ends it."""
    sentence, status = ending_of()
    console.say(sentence, "yellow")
    return _ending(status)


def _ending(status: int) -> typer.Exit:
    """What ends the command after an error, unless it ends here, with the process."""
    if launched_ranks() > 1 and _ranks_have_met():
        # The group cannot be ended, as others may be gone, and a Python that shuts down beside its threads may abort:
        # without this status, and with a last line of its own.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    return typer.Exit(status)


def _ranks_have_met() -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and bool(torch.distributed.is_initialized())


app = typer.Typer(
    cls=_Commands,
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["--help", "-h"]},
)


def _load(name: str) -> Any:
    """The command in the module of this name."""
    module = import_module(f"hesspec.cli.{name}")
    alone = typer.Typer(add_completion=False, rich_markup_mode="markdown")
    alone.command(name, epilog=_example(module.EXAMPLE))(module.command)
    return typer.main.get_command(alone)


def _example(command: str) -> str:
    """Epilogue of a help page: a command that works when it is copied."""
    return f"Example:\n\n```\n{command}\n```"


def _print_version(wanted: bool) -> None:
    if wanted:
        console.output.print(f"hesspec {version('hesspec')}")
        raise typer.Exit


@app.callback(epilog=_example("hesspec demo"))
def _hesspec(
    ctx: typer.Context,
    _version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """The full eigenvalue spectrum of the curvature of deep networks, with error bounds.

    The matrices are the Hessian of the mean cross-entropy, its Gauss-Newton part G and its residual part H:
    Hess = G + H.

    `torchrun --nproc-per-node=N -m hesspec measure ...` spreads the data over N processes.

    Where a command ends with an error, HESSPEC_TRACEBACK=1 in the environment shows where it arose.
    """
    if launched_ranks() > 1 and ctx.invoked_subcommand not in SHARED:
        raise ValueError(
            f"hesspec {ctx.invoked_subcommand} is one process and cannot be spread by torchrun; "
            f"{' and '.join(SHARED)} can be."
        )


def main() -> None:
    """Run the command line."""
    catch_signals()
    with kept_heap():
        app(prog_name="hesspec")
