"""The command line: `hesspec demo`, `measure`, `structure`, `plan`, `show`, `study` and `report`."""

from __future__ import annotations

import logging
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskProgressColumn, TextColumn
from rich.segment import Segment
from rich.table import Column
from rich.text import Text
from typer.core import TyperGroup

from hesspec._heap import kept_heap
from hesspec._suggest import unknown
from hesspec._text import printable
from hesspec.cli.launch import launched_ranks, process_group, rank_here
from hesspec.cli.signals import catch_signals, end_if_asked, ending_of, was_asked

if TYPE_CHECKING:
    import torch
    from torch import nn

    from hesspec.cli.resuming import CommandRecord
    from hesspec.result import Spectrum
    from hesspec.study.config import StudyConfig
    from hesspec.study.datasets import Dataset


class _Console(Console):
    """A console on which text of others, such as names in files, does nothing but be shown."""

    def render(self, renderable: Any, options: Any = None) -> Iterator[Segment]:
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(printable(segment.text, keep="\n"), segment.style)


# Results go to standard output; progress, notes and errors to standard error. Names of files and networks are shown as
# they are, whatever brackets and colons are in them.
output = _Console(highlight=False, markup=False, emoji=False)
notes = _Console(highlight=False, markup=False, emoji=False, stderr=True)

SILENCE = 5  # seconds that a rank whose error another one reports leaves to that one

# Those that run as one process for each share of the data.
SHARED = ("measure", "structure")


class _Commands(TyperGroup):
    """Commands that end with one line, and not with a traceback, where the fault is the user's or the machine's."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command; where there are several ranks, the first one speaks for all."""
        rank = rank_here()
        output.quiet = notes.quiet = rank > 0
        try:
            with _warnings_in_a_line():
                result = super().invoke(ctx)
            end_if_asked()
        except KeyboardInterrupt:
            raise _interrupted() from None
        except (typer.Exit, BrokenPipeError):
            raise  # all is said, or a reader such as `head` has seen enough: typer ends quietly
        except Exception as error:
            if was_asked():  # libraries make errors of their own of it
                raise _interrupted() from None
            if os.environ.get("HESSPEC_TRACEBACK") or not _is_reportable(error):
                raise
            # What is wrong with the command is seen by all ranks, what goes wrong later by one of them.
            notes.quiet = getattr(error, "reported", rank > 0 and not _ranks_have_met())
            _say(f"Error: {_sentence(error)}", "red")
            if notes.quiet:
                # The launcher ends all ranks as soon as one has ended: the one that speaks is to be that one.
                time.sleep(SILENCE)
            raise _ending(1) from None
        else:
            return result


def _interrupted() -> typer.Exit:
    """Say that a signal ends the command, and what ends it."""
    sentence, status = ending_of()
    _say(sentence, "yellow")
    return _ending(status)


def _is_reportable(error: Exception) -> bool:
    """Whether an error is the user's or the machine's fault, so that its sentence is enough."""
    from hesspec.errors import NonFiniteError, RankError  # noqa: PLC0415 - as all that only some commands need

    if isinstance(error, (ValueError, OSError, MemoryError, NonFiniteError, ModuleNotFoundError, RankError)):
        return True
    from hesspec._memory import is_out_of_memory  # noqa: PLC0415 - imports PyTorch, as whoever raised this error did

    return is_out_of_memory(error)


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
    import torch  # noqa: PLC0415 - as above

    return torch.distributed.is_initialized()


def _sentence(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{error.strerror}: {str(error.filename)!r}."
    if not isinstance(error, RuntimeError):
        return " ".join(str(error).split()) or type(error).__name__
    from hesspec._memory import in_a_line  # noqa: PLC0415 - as above

    return in_a_line(error)


def _say(text: str, style: str = "") -> None:
    # Not folded at the width of the terminal, so that whatever reads it gets it as one line.
    notes.print(Text(printable(text), style=style), soft_wrap=True)


class _InALine(logging.Handler):
    """Shows what is logged as a warning in a line."""

    def emit(self, record: logging.LogRecord) -> None:
        _warn(record.getMessage())


def _warn(text: object) -> None:
    _say(f"Warning: {' '.join(str(text).split())}", "yellow")


@contextmanager
def _warnings_in_a_line() -> Iterator[None]:
    handler, logger = _InALine(logging.WARNING), logging.getLogger("hesspec")
    logger.addHandler(handler)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_, **__: _warn(message)
            yield
    finally:
        logger.removeHandler(handler)


class _TimeLeft(ProgressColumn):
    """Time that is left, or that has passed where the end is not known."""

    def render(self, task: Task) -> Text:
        left = task.time_remaining
        seconds, word = (task.elapsed or 0, "passed") if left is None else (left, "left")
        minutes, seconds = divmod(int(seconds), 60)
        hours, minutes = divmod(minutes, 60)
        clock = f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
        return Text(f"{clock} {word}")


@contextmanager
def _progress() -> Iterator[Callable[[str, float, float | None], None]]:
    """Give a function that shows what is being done: as a bar, or where nobody watches as a line for each new thing."""
    if not notes.is_terminal:
        shown = ""

        def line(what: str, _done: float, _total: float | None) -> None:
            nonlocal shown
            end_if_asked()
            if what != shown:
                _say(f"{what} ...")
                shown = what

        yield line
        return
    columns = (
        TextColumn("{task.description}", markup=False, table_column=Column(min_width=31, no_wrap=True)),
        BarColumn(24),
        TaskProgressColumn(),
        _TimeLeft(),
    )
    with Progress(*columns, console=notes, transient=True) as progress:
        task = progress.add_task("", total=None)

        def bar(what: str, done: float, total: float | None) -> None:
            end_if_asked()
            progress.update(task, description=what, completed=done, total=total)

        yield bar


def _presets() -> list[str]:
    """Names of the studies that come with the package; as in `hesspec.study.config.presets`, without its imports."""
    folder = files("hesspec").joinpath("study", "presets")
    return sorted(item.name.removesuffix(".yaml") for item in folder.iterdir())


app = typer.Typer(
    cls=_Commands,
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["--help", "-h"]},
)


def _example(command: str) -> str:
    """Epilogue of a help page: a command that works when it is copied."""
    return f"Example:\n\n```\n{command}\n```"


def _print_version(wanted: bool) -> None:
    if wanted:
        output.print(f"hesspec {version('hesspec')}")
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


@app.command("demo", epilog=_example("hesspec demo"))
def demo_command(
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="For the results; a new or an empty one.")] = Path(
        "hesspec-demo"
    ),
    seed: Annotated[int, typer.Option(min=0, metavar="N", help="Of weights, order of samples, and probes.")] = 0,
) -> None:
    """Train a small network on scanned digits, measure its spectra on the way, and write a report.

    The digits come with scikit-learn, so that nothing is downloaded. Hess, G and H are measured at the initialisation,
    in the middle and at the end of training, on the training and on the test set: 18 spectra as NetCDF files, beside
    weights, figures and a page that shows it all, in less than two minutes. One thread is used, so that a seed gives
    the same numbers on any number of cores.
    """
    from hesspec.cli.demonstration import CHECKPOINTS, demo  # noqa: PLC0415 - as above
    from hesspec.cli.tables.spectra import stacked  # noqa: PLC0415 - slow to import, and not needed for --help

    with _progress() as show:
        result = demo(out, seed=seed, on_progress=show)
    for checkpoint in CHECKPOINTS:
        members = [spectrum for key, spectrum in result.spectra.items() if key[0] == checkpoint]
        record = next(r for r in result.history if r.epoch == members[0].attributes["epoch"])
        title = (
            f"{checkpoint} (epoch {record.epoch}): loss {record.train_loss:.3g} on the training set, "
            f"{record.test_error:.1%} of the test set wrong"
        )
        output.print(stacked(members, title=title, width=output.width), "")
    output.print("largest: ± bound of its error; trace: ± standard error; negative: share of eigenvalues below zero")
    output.print(f"Report: {result.report}", soft_wrap=True)


# Options of the commands that measure, and of the one that plans it.
NetworkArgument = Annotated[
    str,
    typer.Argument(
        metavar="NETWORK",
        help="small_cnn, vgg11_bn, vgg13_bn, vgg16_bn, vgg19_bn, resnet18, resnet34, resnet50, densenet40, "
        "torchvision:NAME, timm:NAME, or your own as MODULE:CALLABLE, which is called with those of the keywords "
        "channels, classes and size that it has.",
    ),
]
DataOption = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help="digits, mnist, fashion-mnist, cifar10, cifar100, or your own as MODULE:CALLABLE, which is called "
        "with the split and returns a map-style data set of (input, class).",
    ),
]
WeightsOption = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Weights in a .safetensors file, or a state dict in a .pt or .pth file. Without them the network is "
        "as it is initialised from the seed.",
    ),
]
SplitOption = Annotated[str, typer.Option(metavar="NAME", help="train or test.")]
SamplesOption = Annotated[int | None, typer.Option(min=1, metavar="N", help="How many to use.", show_default="all")]
FolderOption = Annotated[
    Path | None, typer.Option(metavar="FOLDER", help="Where the files of the data set are; digits need none.")
]
SizeOption = Annotated[
    int | None,
    typer.Option(
        min=1,
        metavar="N",
        help="Pad images to this height and width, in pixels.",
        show_default="8 for digits, 32 for the other named ones",
    ),
]
MatrixOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME",
        help="hessian, gauss-newton or residual, or short hess, g or h; g-class, g-cross, g-within or g-same for a "
        "part of G by its class structure. May be given several times.",
        show_default="all three",
    ),
]
ParamsOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="GLOB",
        help="Take the curvature by the parameters of these names only, such as `features.*.weight`. May be given "
        "several times.",
        show_default="all",
    ),
]
SeedOption = Annotated[
    int, typer.Option(min=0, metavar="N", help="Of the probes, the choice of samples, and the initialisation.")
]
BatchOption = Annotated[
    int, typer.Option(min=1, metavar="N", help="Samples in a pass; no influence on the result but for rounding.")
]
DeviceOption = Annotated[str, typer.Option(metavar="NAME", help="cpu, cuda or cuda:N.")]
DtypeOption = Annotated[str, typer.Option(metavar="NAME", help="float32 or float64.")]
BasisOption = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help="How the Krylov basis is kept: full, half (half of the bits, as good), either of them followed by "
        "` on host` or ` on disk`, restarted (as many vectors as fit), or auto: the first of these that fits.",
    ),
]

DEFAULT_EVERY = "10min"
SnapshotOption = Annotated[
    Path | None,
    typer.Option(
        metavar="FOLDER",
        help="Where the run is written to every so often; the same command goes on from it. Removed in the end.",
    ),
]
EveryOption = Annotated[
    str | None,
    typer.Option(
        metavar="TIME", help="Time between two snapshots, such as 10min, 30s or 2h.", show_default=DEFAULT_EVERY
    ),
]
MemoryOption = Annotated[
    str | None,
    typer.Option(
        metavar="SIZE",
        help="What may be taken of the device's memory beside the network, such as 8GB.",
        show_default="a safe share of what is free",
    ),
]


@app.command("measure", epilog=_example("hesspec measure small_cnn --data digits --samples-per-class 10 --steps 32"))
def measure_command(
    network: NetworkArgument,
    data: DataOption,
    weights: WeightsOption = None,
    split: SplitOption = "train",
    samples_per_class: SamplesOption = None,
    data_folder: FolderOption = None,
    size: SizeOption = None,
    matrix: MatrixOption = None,
    params: ParamsOption = None,
    steps: Annotated[
        str, typer.Option(metavar="N", help="Lanczos steps, or auto: until the spectrum no longer moves.")
    ] = "64",
    probes: Annotated[
        int, typer.Option(min=1, metavar="N", help="Random start vectors. More than one help small networks only.")
    ] = 1,
    seed: SeedOption = 0,
    batch_size: BatchOption = 256,
    memory: MemoryOption = None,
    basis: BasisOption = "auto",
    snapshot: SnapshotOption = None,
    every: EveryOption = None,
    device: DeviceOption = "cpu",
    dtype: DtypeOption = "float32",
    out: Annotated[
        Path, typer.Option(metavar="FOLDER", help="Where the spectra are written. Nothing there is replaced.")
    ] = Path("spectra"),
) -> None:
    """Measure the spectra of a network on a data set; each is kept in a NetCDF file.

    The loss is the mean cross-entropy. Each file is written as soon as its spectrum is complete, under the name
    SPLIT-MATRIX.nc, or CHECKPOINT-SPLIT-MATRIX.nc with the name of the file of weights in front. `hesspec show` and
    `hesspec report` read them. `hesspec plan` says beforehand what it takes.

    Under `torchrun` each process takes its share of the data and a slice of the Krylov basis, and the first one writes
    the results: `torchrun --nproc-per-node=2 -m hesspec measure small_cnn --data digits`.

    On a machine that is busy with other work, OMP_NUM_THREADS=1 in the environment can be many times faster than one
    thread for each core.
    """
    from hesspec._ranks import Ranks  # noqa: PLC0415 - slow to import, and not needed for --help
    from hesspec.cli.resuming import CommandRecord, file_content  # noqa: PLC0415 - as above
    from hesspec.cli.tables.spectra import distinct_labels, side_by_side  # noqa: PLC0415 - as above
    from hesspec.krylov.snapshot import parse_duration  # noqa: PLC0415 - as above
    from hesspec.plot import DISPLAY_NAMES  # noqa: PLC0415 - as above
    from hesspec.result import load  # noqa: PLC0415 - as above
    from hesspec.study.measuring import MATRICES, matrix_name, measure, spectrum_file  # noqa: PLC0415 - as above

    names = list(dict.fromkeys(map(matrix_name, matrix or MATRICES)))
    count = _steps(steps)
    checkpoint = _checkpoint(weights)
    if every is not None and snapshot is None:
        raise ValueError(f"--every {every} is the time between snapshots; name a folder for them with --snapshot.")
    every = DEFAULT_EVERY if every is None else every
    parse_duration(every)
    model, dataset = _problem(network, data, weights, split, samples_per_class, data_folder, size, seed, device, dtype)
    files = {name: out / spectrum_file(name, split, str(checkpoint["checkpoint"])) for name in names}
    command = {
        "NETWORK": network,
        "--data": data,
        "--data-folder": str(data_folder),
        "--weights": "none" if weights is None else file_content(weights),
        "--split": split,
        "--samples-per-class": str(samples_per_class),
        "--size": str(size),
        "--params": " ".join(params or ["all"]),
        "--steps": steps,
        "--probes": str(probes),
        "--seed": str(seed),
        "--dtype": dtype,
        "--out": str(out.resolve()),
    }
    record = None if snapshot is None else CommandRecord(snapshot, command)
    with process_group(_device(device)) as group, _progress() as show, record or nullcontext():
        ranks = Ranks(group)
        # The first rank looks and writes; what the others saw would depend on how far it has come.
        there = ranks.gather(ranks.together(lambda: _begun(out, files, record) if ranks.rank == 0 else []))[0]
        measure(
            model,
            dataset,
            matrices=[name for name in names if name not in there],
            params=params,
            steps=count,
            probes=probes,
            seed=seed,
            batch_size=batch_size,
            memory=memory,
            basis=basis,
            attributes={"network": network, **checkpoint, **({"params": " ".join(params)} if params else {})},
            folder=out,
            overwrite=False,
            on_progress=lambda name, done, total: show(f"{DISPLAY_NAMES[name]}, {split} set", done, total),
            group=group,
            snapshot=snapshot,
            every=every,
        )
    if output.quiet:
        return  # the first rank has written the results, and shows them
    if record is not None and (others := record.end()):
        _say(f"{snapshot} is left, as there is {', '.join(others)} in it.")
    spectra = {name: load(file) for name, file in files.items()}
    labels = distinct_labels(list(spectra.values()), list(spectra))
    for table in side_by_side(dict(zip(labels, spectra.values(), strict=True)), width=output.width):
        output.print(table, "")
    for file in files.values():
        output.print(f"Saved {file}", soft_wrap=True)


def _begun(out: Path, files: dict[str, Path], record: CommandRecord | None) -> list[str]:
    """Matrices that this command measured before it was interrupted; and get ready to measure the others.

    Raises
    ------
    ValueError
        If the folder of snapshots is of another command.
    OSError
        If a file is there already, or a folder cannot be written to.
    """
    before = [] if record is None else record.results()
    there = [name for name in before if name in files and files[name].exists()]
    _check_folder(out, [file for name, file in files.items() if name not in there])
    if record is not None and before:
        _say(f"Going on with the command whose snapshots are in {record.folder}")
    if there:
        _say(f"Measured before, and kept: {', '.join(str(files[name]) for name in there)}")
    if record is not None:
        record.begin(files)
    return there


@app.command("plan", epilog=_example("hesspec plan small_cnn --data digits --samples-per-class 10 --accuracy 0.02"))
def plan_command(
    ctx: typer.Context,
    network: Annotated[
        str | None, typer.Argument(metavar="NETWORK", help="As of `hesspec measure`.", show_default=False)
    ] = None,
    data: Annotated[str | None, typer.Option(metavar="NAME", help="As of `hesspec measure`.")] = None,
    weights: WeightsOption = None,
    split: SplitOption = "train",
    samples_per_class: SamplesOption = None,
    data_folder: FolderOption = None,
    size: SizeOption = None,
    matrix: MatrixOption = None,
    params: Annotated[
        list[str] | None,
        typer.Option(
            metavar="GLOB|N",
            help="With NETWORK, names of the parameters that the curvature is taken by. Without it, the number of "
            "parameters of a network that is not here, such as 7e9.",
        ),
    ] = None,
    tokens: Annotated[
        str | None, typer.Option(metavar="N", help="Without NETWORK: tokens in the data of a language model.")
    ] = None,
    context: Annotated[
        int, typer.Option(min=1, metavar="N", help="Without NETWORK: tokens of a sequence of a language model.")
    ] = 2048,
    samples: Annotated[
        str | None, typer.Option(metavar="N", help="Without NETWORK: samples in the data of any other network.")
    ] = None,
    flops_forward: Annotated[
        str | None,
        typer.Option(
            metavar="N",
            help="Without NETWORK: floating-point operations of a forward pass of such a sample, a multiply-add being "
            "two.",
        ),
    ] = None,
    activations: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="Without NETWORK: what the primal pass of a sample or a sequence keeps, such as 250MB.",
            show_default="known for language models, else left out",
        ),
    ] = None,
    bandwidth: Annotated[
        str | None,
        typer.Option(
            metavar="RATE",
            help="Without NETWORK: what a device receives from others, such as 400GB/s.",
            show_default="50GB/s",
        ),
    ] = None,
    flops: Annotated[
        str | None,
        typer.Option(
            metavar="RATE",
            help="Without NETWORK: operations per second that a device sustains, such as 400TFLOP/s.",
            show_default="half of an H100's float32 peak, 33.5TFLOP/s",
        ),
    ] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Lanczos steps.", show_default="64, or as accuracy asks for")
    ] = None,
    probes: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Random start vectors.", show_default="1, or as accuracy asks for"),
    ] = None,
    accuracy: Annotated[
        float | None,
        typer.Option(
            metavar="X",
            help="Wasserstein-1 distance to the true spectrum, in units of the mean |eigenvalue|, to plan the cheapest "
            "steps and probes for.",
        ),
    ] = None,
    seed: SeedOption = 0,
    batch_size: BatchOption = 256,
    memory: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="Memory for a measurement on each device, such as 80GB, also of a device that is not here.",
            show_default="a safe share of what is free; 80GB without NETWORK",
        ),
    ] = None,
    devices: Annotated[int, typer.Option(min=1, metavar="N", help="Devices that the data is spread over.")] = 1,
    basis: BasisOption = "auto",
    device: DeviceOption = "cpu",
    dtype: DtypeOption = "float32",
) -> None:
    """Say what `hesspec measure` will take, from one batch that is timed: mode, seconds, memory.

    Seconds are those of the device at hand. Without NETWORK, it is said of one that is not here, of any size and on
    any number of devices, from formulas: compute, communication and memory of a product and of a spectrum, as in
    `hesspec plan --params 7e9 --tokens 1e9 --devices 256 --memory 80GB --bandwidth 400GB/s`.
    """
    from hesspec.cli.tables.spectra import estimated, planned  # noqa: PLC0415 - slow to import, and not needed for --help
    from hesspec.study.measuring import MATRICES, matrix_name, plan_measurement  # noqa: PLC0415 - as above

    names = list(dict.fromkeys(map(matrix_name, matrix or MATRICES)))
    _check_plan(ctx, network, data, params)
    if network is None or data is None:
        from hesspec.cost_model import H100, Device, cost, parse_bandwidth, parse_count, parse_flops  # noqa: PLC0415

        known = {"tokens": tokens, "samples": samples, "flops_forward": flops_forward}
        rates = Device(
            H100.flops if flops is None else parse_flops(flops),
            H100.bandwidth if bandwidth is None else parse_bandwidth(bandwidth),
            H100.memory_bandwidth,
            H100.note if flops is None else "as given",
        )
        costs = [
            cost(
                parse_count("params", params[0] if params else ""),
                **{name: parse_count(name, value) for name, value in known.items() if value is not None},
                context=context,
                activations=activations,
                devices=devices,
                memory=memory or "80GB",
                device=rates,
                steps=steps or 64,
                matrix=name,
                basis=basis,
            )
            for name in names
        ]
        for part in estimated(costs):
            output.print(part, "")
        return
    model, dataset = _problem(network, data, weights, split, samples_per_class, data_folder, size, seed, device, dtype)
    plans = plan_measurement(
        model,
        dataset,
        matrices=names,
        params=params,
        steps=steps,
        probes=probes,
        accuracy=accuracy,
        batch_size=batch_size,
        memory=memory,
        basis=basis,
        devices=devices,
    )
    output.print(planned(plans.values()))


@app.command("structure", epilog=_example("hesspec structure small_cnn --data digits --samples-per-class 10"))
def structure_command(
    network: NetworkArgument,
    data: DataOption,
    weights: WeightsOption = None,
    split: SplitOption = "train",
    samples_per_class: SamplesOption = None,
    data_folder: FolderOption = None,
    size: SizeOption = None,
    matrix: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Whose outliers are explained: hess, g or h. May be given several times.",
            show_default="all three",
        ),
    ] = None,
    params: ParamsOption = None,
    cross: Annotated[
        bool,
        typer.Option(help="Whether the C^2 cross-class means are formed, too, which is dear for many classes C."),
    ] = True,
    steps: Annotated[int, typer.Option(min=1, metavar="N", help="Lanczos steps of each spectrum.")] = 64,
    seed: SeedOption = 0,
    batch_size: BatchOption = 256,
    memory: MemoryOption = None,
    device: DeviceOption = "cpu",
    dtype: DtypeOption = "float32",
    out: Annotated[
        Path, typer.Option(metavar="FOLDER", help="Where the result is written. Nothing there is replaced.")
    ] = Path("spectra"),
) -> None:
    """Explain the outliers: the class structure of G, and what of each outlier comes from which part of it.

    G = G_class + G_cross + G_within + G_same, by the means of the logit gradients over the classes. Eigenvalues of the
    parts come from averages alone; each outlier's eigenvector is split by them, and the means are projected out of the
    Hessian to see which outliers vanish. The result is SPLIT-ClassStructure.nc, or CHECKPOINT-SPLIT-ClassStructure.nc;
    the spectra that it takes are kept too, where `hesspec measure` has not left them already. `hesspec report` shows
    all of it.
    """
    from hesspec.cli.tables.structures import explained  # noqa: PLC0415 - slow to import, and not needed for --help
    from hesspec.plot import DISPLAY_NAMES  # noqa: PLC0415 - as above
    from hesspec.study.measuring import (  # noqa: PLC0415 - as above
        MATRICES,
        matrix_name,
        measure_structure,
        spectrum_file,
    )

    names = list(dict.fromkeys(map(matrix_name, matrix or MATRICES)))
    checkpoint = _checkpoint(weights)
    model, dataset = _problem(network, data, weights, split, samples_per_class, data_folder, size, seed, device, dtype)
    file = out / spectrum_file("ClassStructure", split, str(checkpoint["checkpoint"]))
    _check_folder(out, [file])
    with process_group(_device(device)) as group, _progress() as show:
        found = measure_structure(
            model,
            dataset,
            matrices=names,
            params=params,
            cross=cross,
            steps=steps,
            seed=seed,
            batch_size=batch_size,
            memory=memory,
            attributes={"network": network, **checkpoint, **({"params": " ".join(params)} if params else {})},
            folder=out,
            overwrite=False,
            on_progress=lambda what, done, total: show(f"{DISPLAY_NAMES.get(what, what)}, {split} set", done, total),
            group=group,
        )
    for table in explained(found):
        output.print(table, "")
    output.print(f"Saved {file}", soft_wrap=True)


# Options of `hesspec plan` for a network that is not here, and those that it has in common with one that is.
_AT_SCALE = ("tokens", "context", "samples", "flops_forward", "activations", "bandwidth", "flops")
_IN_COMMON = ("params", "matrix", "steps", "memory", "devices", "basis")


def _check_plan(ctx: typer.Context, network: str | None, data: str | None, params: list[str] | None) -> None:
    """Raise ValueError unless the options are those of a network that is here, or of one that is not."""
    sources = {name: ctx.get_parameter_source(name) for name in ctx.params}
    given = {name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"}
    numbers = [text for text in params or () if _is_number(text)]
    if network is None:
        if not params:
            raise ValueError(
                "There is nothing to plan: give NETWORK and --data, or for a network that is not here --params 7e9 and "
                "--tokens 1e9."
            )
        if len(params) > 1 or not numbers:
            raise ValueError(
                f"Without NETWORK, --params is one number of parameters such as 7e9, not {' '.join(map(repr, params))}."
            )
        _refuse(given.difference(_AT_SCALE, _IN_COMMON), "is for a network that is here", "give NETWORK")
        return
    if numbers:
        raise ValueError(
            f"--params {numbers[0]} is a number of parameters, which {network} has by itself; leave out one of the "
            "two. With NETWORK, --params are names."
        )
    _refuse(given.intersection(_AT_SCALE), "is for a network that is not here", "leave out NETWORK")
    if data is None:
        raise ValueError(f"There is no data to plan {network} with; give --data, such as --data digits.")


def _refuse(options: set[str], why: str, instead: str) -> None:
    if options:
        named = f"--{min(options).replace('_', '-')}"
        raise ValueError(f"{named} {why}; leave it out, or {instead}.")


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _problem(
    network: str,
    data: str,
    weights: Path | None,
    split: str,
    samples_per_class: int | None,
    data_folder: Path | None,
    size: int | None,
    seed: int,
    device: str,
    dtype: str,
) -> tuple[nn.Module, Dataset]:
    """The network with its weights, on its device, and the data set."""
    import torch  # noqa: PLC0415 - as in the commands

    from hesspec.study import build_network, load_dataset, load_weights  # noqa: PLC0415 - as in the commands

    where, precision = _device(device), _dtype(dtype)
    dataset = load_dataset(data, split, samples_per_class=samples_per_class, folder=data_folder, size=size, seed=seed)
    torch.manual_seed(seed)
    model = build_network(network, channels=dataset.channels, classes=dataset.classes, size=dataset.size)
    if weights is None:
        _say(f"No --weights: the spectra are those of {network} as it is initialised from seed {seed}.")
    else:
        load_weights(model, weights)
    return model.to(where, precision), dataset


def _steps(text: str) -> int | Literal["auto"]:
    if text == "auto":
        return "auto"
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f"--steps is {text!r}; it has to be a positive whole number, or 'auto'.")
    return int(text)


def _dtype(name: str) -> torch.dtype:
    import torch  # noqa: PLC0415 - as in the command

    known = {"float32": torch.float32, "float64": torch.float64}
    if name not in known:
        raise ValueError(unknown("dtype", name, known))
    return known[name]


def _device(name: str) -> torch.device:
    import torch  # noqa: PLC0415 - as in the command

    kind, _, number = name.partition(":")
    if name == "cuda" and "LOCAL_RANK" in os.environ:
        number = os.environ["LOCAL_RANK"]
    if kind not in {"cpu", "cuda"} or (number and not number.isdecimal()):
        raise ValueError(unknown("device", name, ["cpu", "cuda", "cuda:0"]))
    if kind == "cuda" and int(number or 0) >= torch.cuda.device_count():
        raise ValueError(f"There is no device {name!r}: PyTorch finds {torch.cuda.device_count()} CUDA devices here.")
    return torch.device(f"{kind}:{number}" if number else kind)


def _checkpoint(weights: Path | None) -> dict[str, str | int]:
    """What the spectra keep of the point at which they are measured."""
    from hesspec.study import read_metadata  # noqa: PLC0415 - as in the command

    if weights is None:
        return {"checkpoint": "initialisation", "epoch": 0}
    epoch = read_metadata(weights).get("epoch", "") if weights.suffix == ".safetensors" else ""
    return {"checkpoint": weights.stem, "weights": str(weights), **({"epoch": int(epoch)} if epoch.isdecimal() else {})}


def _check_folder(folder: Path, files: list[Path]) -> None:
    """Say now, and not after hours of measuring, that a file cannot be written."""
    for file in files:
        if file.exists():
            raise FileExistsError(
                f"There is a file {str(file)!r} already; remove it, or name another folder with --out."
            )
    folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(f"The folder {str(folder)!r} cannot be written to; name another one with --out.")


@app.command("show", epilog=_example("hesspec show spectra/*.nc --png spectra.png"))
def show_command(
    files: Annotated[list[Path], typer.Argument(metavar="FILE", help="NetCDF files that hesspec wrote.")],
    png: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw the spectra over one another into this file.")
    ] = None,
) -> None:
    """Show spectra as tables: their numbers, and all outliers with the bounds of their errors.

    Files that cannot be read are named and left out; the status is 1 then.
    """
    from hesspec._files import atomic_path  # noqa: PLC0415 - its package imports torch, which --help need not wait for
    from hesspec.cli.tables.spectra import distinct_labels, side_by_side  # noqa: PLC0415 - as above
    from hesspec.plot import plot_spectrum  # noqa: PLC0415 - as above
    from hesspec.result import load  # noqa: PLC0415 - as above

    found: dict[Path, Spectrum] = {}
    for file in files:
        try:
            found[file] = load(file)
        except (ValueError, OSError) as error:
            if len(files) == 1:
                raise
            _warn(f"left out: {_sentence(error)}")
    if not found:
        raise ValueError("None of these files can be read.")
    names = [printable(str(file)) for file in found]
    labels = distinct_labels(list(found.values()), names)
    spectra = dict(zip(labels, found.values(), strict=True))
    for label, name in zip(labels, names, strict=True):
        output.print(f"{label}: {_description(spectra[label])}{name}" if label != name else label, soft_wrap=True)
    for table in side_by_side(spectra, width=output.width):
        output.print("", table)
    if png is not None:
        with atomic_path(png) as temporary:
            plot_spectrum(spectra).savefig(temporary, format="png", dpi=200)
        output.print(f"Saved {png}", soft_wrap=True)
    if len(found) < len(set(files)):
        raise typer.Exit(1)


def _description(spectrum: Spectrum) -> str:
    """What the file says of itself, for the line with its name."""
    attributes = spectrum.attributes
    names = ("network", "dataset", "split", "checkpoint")
    parts = [printable(str(attributes[name])) for name in names if name in attributes]
    return f"{', '.join(parts)}; " if parts else ""


@app.command("study", epilog=_example("hesspec study digits-quick --out my-study\nhesspec report my-study"))
def study_command(
    file: Annotated[
        str,
        typer.Argument(metavar="FILE", help="A study file (YAML), or a preset: " + ", ".join(_presets()) + "."),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="For the results. What is there of this study is not done again.",
            show_default="the file's name without .yaml; of a study.yaml among results, where it is",
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List what would be run, and what it would take on this machine.")
    ] = False,
    device: DeviceOption = "cpu",
    ray: Annotated[
        bool,
        typer.Option(
            "--ray",
            help="Spread the study over a Ray cluster: the one that RAY_ADDRESS names, or one of this machine. FOLDER "
            "has to be a file system that all of its machines share.",
        ),
    ] = False,
    ray_cpus: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="CPU cores of a task, with --ray. Each takes a GPU where --device is cuda.",
            show_default="1",
        ),
    ] = None,
) -> None:
    """Train networks at several sample sizes, and measure their spectra through the training.

    Everything is written once, as soon as it is there: a study that was interrupted goes on where it was by the same
    command. Several processes with the same FOLDER share the work. `hesspec report FOLDER` shows what is there, also
    while a study is running.

    Data sets, networks and names of parameters are checked before anything is run; with --dry-run too, which lists all
    the same what would be run. Where a task fails later, the others are done first. Either ends with a line for each
    reason, and status 1; the same command tries what failed again.
    """
    from hesspec.cli.tables.studies import progress_table  # noqa: PLC0415 - slow to import, and not needed for --help
    from hesspec.study import StudyError, load_study, run_study  # noqa: PLC0415 - as above

    _check_ray(ray, ray_cpus, dry_run)
    config = load_study(file)
    if not ray:  # which says what devices its workers can have
        _device(device)
    folder = _results_of(Path(file)) if out is None else out
    failed: StudyError | None = None
    try:
        if dry_run:
            _forecast(config, folder, device)
            return
        with _progress() as show:
            if ray:
                from hesspec.study.cluster import run_on_ray  # noqa: PLC0415 - Ray is an extra

                run_on_ray(config, folder, device=device, cpus=ray_cpus or 1, on_progress=show)
            else:
                run_study(config, folder, device=device, on_progress=show)
    except StudyError as error:
        if os.environ.get("HESSPEC_TRACEBACK"):
            raise
        failed = error
    if folder.is_dir() and not dry_run:
        output.print(progress_table(config, folder))
        output.print(f"Results in {folder}; hesspec report {folder} makes a page of them.", soft_wrap=True)
    if failed is not None:
        for sentence in (failed.summary, *failed.sentences):
            _say(f"Error: {sentence}", "red")
        raise typer.Exit(1)


def _check_ray(ray: bool, cpus: int | None, dry_run: bool) -> None:
    """Raise ValueError unless the options of Ray go together."""
    if cpus is not None and not ray:
        raise ValueError(f"--ray-cpus {cpus} is for tasks on Ray; leave it out, or give --ray.")
    if ray and dry_run:
        raise ValueError("--dry-run times one process on this machine, without Ray; leave out --ray, or --dry-run.")


def _results_of(file: Path) -> Path:
    """Folder of a study whose file was named and no folder."""
    from hesspec.study.store import RUNS, STUDY_FILE  # noqa: PLC0415 - as in the command

    kept = file.name == STUDY_FILE and (file.parent / RUNS).is_dir()
    return file.parent if kept else Path(file.stem)


def _forecast(config: StudyConfig, folder: Path, device: str) -> None:
    """Show what of a study is left to do; StudyError afterwards where tasks cannot be run."""
    from hesspec.cli.tables.studies import forecast_table  # noqa: PLC0415 - as in the command
    from hesspec.study import StudyError  # noqa: PLC0415 - as in the command
    from hesspec.study.forecasting import forecast_study  # noqa: PLC0415 - as in the command

    with _progress() as show:
        forecasts = forecast_study(config, folder, device=device, on_task=lambda what: show(what, 0, None))
    for table in forecast_table(forecasts):
        output.print(table)
    faults = {item.task.name: item.fault for item in forecasts if item.fault is not None}
    if faults:
        raise StudyError(f"{len(faults)} of {len(forecasts)} tasks cannot be run as they are.", faults)


@app.command("report", epilog=_example("hesspec report spectra"))
def report_command(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="With NetCDF files, in subfolders too.")],
    all_figures: Annotated[
        bool,
        typer.Option(
            "--all-figures",
            help="Of a study, write the figures at every sample size and epoch as PDF, not only those at the last: "
            "about a second each.",
        ),
    ] = False,
) -> None:
    """Write report.html, one page with all spectra of a folder, which opens without a network.

    If the folder has a training.json as `hesspec demo` writes it, the page shows the training too. Files that cannot be
    read are named, here and on the page, and left out; the status is 1 then.
    """
    from hesspec.report.page import report_on  # noqa: PLC0415 - slow to import, and not needed for --help

    page, unread = report_on(folder, all_figures=all_figures)
    output.print(f"Report: {page}", soft_wrap=True)
    if unread:
        raise typer.Exit(1)


def main() -> None:
    """Run the command line."""
    catch_signals()
    with kept_heap():
        app(prog_name="hesspec")
