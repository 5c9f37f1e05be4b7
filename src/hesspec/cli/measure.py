"""`hesspec measure`."""

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hesspec.cli import console, options
from hesspec.cli.completion import BLOCKS, completing
from hesspec.cli.tables.layout import print_results
from hesspec.cli.tables.spectra import distinct_labels, side_by_side
from hesspec.matrices import symbol_of
from hesspec.spectra.record import load

if TYPE_CHECKING:
    from hesspec.cli.command_record import CommandRecord
    from hesspec.cli.problem import Problem

EXAMPLE = "hesspec measure small_cnn --data digits --samples-per-class 10 --steps 32"


def command(
    network: options.Network,
    data: options.Data,
    weights: options.Weights = None,
    pretrained: options.Pretrained = False,
    split: options.Split = "train",
    samples_per_class: options.SamplesPerClass = None,
    data_folder: options.DataFolder = None,
    size: options.Size = None,
    tokenizer: options.Tokenizer = None,
    loss: options.Loss = "cross-entropy",
    matrix: options.Matrix = None,
    params: options.Params = None,
    by: Annotated[
        str | None,
        typer.Option(
            metavar="KIND",
            autocompletion=completing(BLOCKS),
            help="Measure the spectrum of each diagonal block instead of the whole: layer, projection, head, module or "
            "parameter.",
        ),
    ] = None,
    steps: Annotated[
        str, typer.Option(metavar="N", help="Number of Lanczos steps, or auto: until the spectrum no longer changes.")
    ] = "64",
    probes: Annotated[
        int,
        typer.Option(
            min=1, metavar="N", help="Number of random start vectors. More than one only helps for small networks."
        ),
    ] = 1,
    trace: Annotated[
        str | None,
        typer.Option(
            metavar="SHARE",
            help="Compute the trace to this relative error, such as 2%, by further products where necessary.",
        ),
    ] = None,
    seed: options.Seed = 0,
    batch_size: options.BatchSize = 256,
    memory: options.Memory = None,
    basis: options.Basis = "auto",
    offload: options.Offload = None,
    snapshot: options.Snapshot = None,
    every: options.Every = None,
    device: options.Device = "cpu",
    dtype: options.Dtype = "float32",
    out: options.Out = Path("spectra"),
) -> None:
    """Measure the spectra of a network on a data set, and save each as a NetCDF file.

    Each spectrum is saved as soon as it is complete, as CHECKPOINT-SPLIT-MATRIX.nc,
    where CHECKPOINT is the name of the weights file without its suffix, or "initialisation"; if the folder holds
    results of another network, data set or choice of parameters, NETWORK-DATA-PARAMS comes first. A spectrum that was
    measured with the same options is not measured again. `hesspec show` and `hesspec report` read these files.
    `hesspec plan` estimates the time and memory beforehand.

    With --by layer, the blocks of each matrix are measured together, and saved as CHECKPOINT-SPLIT-MATRIX-by-layer.nc.

    Under `torchrun`, each process gets a part of the data and a slice of the Krylov basis, and the first process writes
    the results: `torchrun --nproc-per-node=2 -m hesspec measure small_cnn --data digits`.

    If other programs keep the machine busy, set OMP_NUM_THREADS=1: a single thread can then be many times faster than
    one thread per core.
    """
    from hesspec.backend.ranks import Ranks
    from hesspec.cli.command_record import CommandRecord
    from hesspec.cli.devices import device_of
    from hesspec.cli.problem import Problem
    from hesspec.cli.process_group import process_group
    from hesspec.krylov.snapshot import parse_duration
    from hesspec.study.losses import CROSS_ENTROPY
    from hesspec.study.measuring import measure

    names = options.matrices_of(matrix)
    count = options.steps_of(steps)
    wanted = None if trace is None else options.share_of(trace, "--trace")
    if pretrained:
        weights = _pretrained(network, weights)
    problem = Problem(
        network, data, weights, split, samples_per_class, data_folder, size, tokenizer, params, seed, device, dtype
    )
    if by is not None:
        _refuse_with_blocks(
            by, {"--trace": trace, "--basis": basis != "auto", "--offload": offload, "--snapshot": snapshot}
        )
        from hesspec.cli.blocks import measure_by_block

        measure_by_block(problem, by, names, count, probes, loss, batch_size, memory, out)
        return
    if every is not None and snapshot is None:
        raise ValueError(f"--every {every} requires a folder for the snapshots; choose one with --snapshot.")
    every = options.DEFAULT_EVERY if every is None else every
    parse_duration(every)
    model, dataset = problem.load()
    given = problem.options(
        {
            **({} if loss == CROSS_ENTROPY else {"--loss": loss}),
            "--steps": steps,
            "--probes": str(probes),
            **({} if wanted is None else {"--trace": f"{wanted:g}"}),
        }
    )
    record = None if snapshot is None else CommandRecord(snapshot, {**given, "--out": str(out.resolve())})
    with process_group(device_of(device)) as group, console.progress() as show, record or nullcontext():
        ranks = Ranks(group)
        # Only the first rank looks and writes: what other ranks see depends on how far it has come.
        prefix, measured = ranks.gather(
            ranks.together(lambda: _prepare(problem, out, names, given, record) if ranks.rank == 0 else ("", []))
        )[0]
        measure(
            model,
            dataset,
            matrices=[name for name in names if name not in measured],
            params=params,
            steps=count,
            probes=probes,
            seed=seed,
            loss=loss,
            trace=wanted,
            batch_size=batch_size,
            memory=memory,
            basis=basis,
            offload=offload,
            attributes=problem.attributes_with(given),
            folder=out,
            prefix=prefix,
            overwrite=False,
            on_progress=lambda name, done, total: show(f"{symbol_of(name)}, {split} set", done, total),
            group=group,
            snapshot=snapshot,
            every=every,
        )
    if console.output.quiet:
        return  # the first rank has written the results and prints them
    if record is not None and (others := record.end()):
        console.say(f"The folder {snapshot} was not deleted, as it contains {', '.join(others)}.")
    files = {name: problem.file(out, name, prefix) for name in names}
    spectra = {name: load(file) for name, file in files.items()}
    labels = distinct_labels(list(spectra.values()), list(spectra))
    tables = side_by_side(dict(zip(labels, spectra.values(), strict=True)), width=console.output.width)
    print_results(tables, [file for name, file in files.items() if name not in measured], out)


def _pretrained(network: str, weights: Path | None) -> Path:
    """File of the weights that a library has on this machine."""
    from hesspec.study.networks.pretrained import pretrained_file

    if weights is not None:
        raise ValueError(f"--pretrained and --weights {weights} are both given; choose one of them.")
    return pretrained_file(network)


def _refuse_with_blocks(by: str, options: dict[str, object]) -> None:
    refused = ", ".join(option for option, value in options.items() if value)
    if refused:
        raise ValueError(f"--by {by} cannot be combined with {refused}, which are for whole matrices.")


def _prepare(
    problem: "Problem", out: Path, names: list[str], options: dict[str, str], record: "CommandRecord | None"
) -> tuple[str, list[str]]:
    """Prepare the output folder and the record; return the prefix of files, and the matrices that are measured already.

    Raises
    ------
    ValueError
        If the snapshots belong to a different command.
    OSError
        If a file already exists that was measured with other options, or a folder is not writable.
    """
    before = [] if record is None else record.results()
    prefix, measured = problem.prepare(out, names, options)
    if record is not None:
        if before:
            console.say(f"Resuming from the snapshots in {record.folder}")
        record.begin(names)
    return prefix, measured
