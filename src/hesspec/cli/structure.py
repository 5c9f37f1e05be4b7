"""`hesspec structure`."""

from pathlib import Path
from typing import Annotated

import typer

from hesspec.cli import console, options
from hesspec.cli.problem import Problem, check_folder
from hesspec.cli.process_group import process_group
from hesspec.cli.tables.structures import explained
from hesspec.plot import DISPLAY_NAMES
from hesspec.study.measuring import measure_structure

EXAMPLE = "hesspec structure small_cnn --data digits --samples-per-class 10"


def command(
    network: options.Network,
    data: options.Data,
    weights: options.Weights = None,
    split: options.Split = "train",
    samples_per_class: options.SamplesPerClass = None,
    data_folder: options.DataFolder = None,
    size: options.Size = None,
    matrix: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Whose outliers are explained: hess, g or h. May be given several times.",
            show_default="all three",
        ),
    ] = None,
    params: options.Params = None,
    cross: Annotated[
        bool,
        typer.Option(help="Whether the C^2 cross-class means are formed, too, which is dear for many classes C."),
    ] = True,
    steps: Annotated[int, typer.Option(min=1, metavar="N", help="Lanczos steps of each spectrum.")] = 64,
    seed: options.Seed = 0,
    batch_size: options.BatchSize = 256,
    memory: options.Memory = None,
    device: options.Device = "cpu",
    dtype: options.Dtype = "float32",
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
    names = options.matrices_of(matrix)
    problem = Problem(network, data, weights, split, samples_per_class, data_folder, size, params, seed, device, dtype)
    file = problem.file(out, "ClassStructure")
    model, dataset = problem.load()
    check_folder(out, [file])
    with process_group(options.device_of(device)) as group, console.progress() as show:
        structure = measure_structure(
            model,
            dataset,
            matrices=names,
            params=params,
            cross=cross,
            steps=steps,
            seed=seed,
            batch_size=batch_size,
            memory=memory,
            attributes=problem.attributes,
            folder=out,
            overwrite=False,
            on_progress=lambda what, done, total: show(f"{DISPLAY_NAMES.get(what, what)}, {split} set", done, total),
            group=group,
        )
    for table in explained(structure):
        console.output.print(table, "")
    console.output.print(f"Saved {file}", soft_wrap=True)
