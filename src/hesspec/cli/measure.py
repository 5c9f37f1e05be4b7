"""`hesspec measure`."""

from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer

from hesspec._ranks import Ranks
from hesspec.cli import console, options
from hesspec.cli.problem import Problem, check_folder
from hesspec.cli.process_group import process_group
from hesspec.cli.resuming import CommandRecord, file_content
from hesspec.cli.tables.spectra import distinct_labels, side_by_side
from hesspec.krylov.snapshot import parse_duration
from hesspec.plot import DISPLAY_NAMES
from hesspec.result import load
from hesspec.study.measuring import measure

EXAMPLE = "hesspec measure small_cnn --data digits --samples-per-class 10 --steps 32"


def command(
    network: options.Network,
    data: options.Data,
    weights: options.Weights = None,
    split: options.Split = "train",
    samples_per_class: options.SamplesPerClass = None,
    data_folder: options.DataFolder = None,
    size: options.Size = None,
    matrix: options.Matrix = None,
    params: options.Params = None,
    steps: Annotated[
        str, typer.Option(metavar="N", help="Lanczos steps, or auto: until the spectrum no longer moves.")
    ] = "64",
    probes: Annotated[
        int, typer.Option(min=1, metavar="N", help="Random start vectors. More than one help small networks only.")
    ] = 1,
    seed: options.Seed = 0,
    batch_size: options.BatchSize = 256,
    memory: options.Memory = None,
    basis: options.Basis = "auto",
    snapshot: options.Snapshot = None,
    every: options.Every = None,
    device: options.Device = "cpu",
    dtype: options.Dtype = "float32",
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
    names = options.matrices_of(matrix)
    count = options.steps_of(steps)
    problem = Problem(network, data, weights, split, samples_per_class, data_folder, size, params, seed, device, dtype)
    files = {name: problem.file(out, name) for name in names}
    if every is not None and snapshot is None:
        raise ValueError(f"--every {every} is the time between snapshots; name a folder for them with --snapshot.")
    every = options.DEFAULT_EVERY if every is None else every
    parse_duration(every)
    model, dataset = problem.load()
    given = {
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
    record = None if snapshot is None else CommandRecord(snapshot, given)
    with process_group(options.device_of(device)) as group, console.progress() as show, record or nullcontext():
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
            attributes=problem.attributes,
            folder=out,
            overwrite=False,
            on_progress=lambda name, done, total: show(f"{DISPLAY_NAMES[name]}, {split} set", done, total),
            group=group,
            snapshot=snapshot,
            every=every,
        )
    if console.output.quiet:
        return  # the first rank has written the results, and shows them
    if record is not None and (others := record.end()):
        console.say(f"{snapshot} is left, as there is {', '.join(others)} in it.")
    spectra = {name: load(file) for name, file in files.items()}
    labels = distinct_labels(list(spectra.values()), list(spectra))
    for table in side_by_side(dict(zip(labels, spectra.values(), strict=True)), width=console.output.width):
        console.output.print(table, "")
    for file in files.values():
        console.output.print(f"Saved {file}", soft_wrap=True)


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
    check_folder(out, [file for name, file in files.items() if name not in there])
    if record is not None and before:
        console.say(f"Going on with the command whose snapshots are in {record.folder}")
    if there:
        console.say(f"Measured before, and kept: {', '.join(str(files[name]) for name in there)}")
    if record is not None:
        record.begin(files)
    return there
