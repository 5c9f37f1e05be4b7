"""`hesspec structure`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hesspec.cli import console, options
from hesspec.matrices import symbol_of

if TYPE_CHECKING:
    from hesspec.spectra.record import Record

EXAMPLE = "hesspec structure small_cnn --data digits --samples-per-class 10"


def command(
    network: options.Network,
    data: options.Data,
    weights: options.Weights = None,
    split: options.Split = "train",
    samples_per_class: options.SamplesPerClass = None,
    data_folder: options.DataFolder = None,
    size: options.Size = None,
    tokenizer: options.Tokenizer = None,
    matrix: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Matrix whose outliers are explained: hess, g or h. Can be repeated.",
            show_default="hess, g and h",
        ),
    ] = None,
    params: options.Params = None,
    classes: Annotated[
        int,
        typer.Option(
            min=1,
            metavar="N",
            help="Of text, number of tokens that are classes of their own, the most frequent ones; all others are one "
            "more class.",
        ),
    ] = 10,
    cross: Annotated[
        bool,
        typer.Option(help="Also compute the C^2 cross-class means, which is expensive for many classes C."),
    ] = True,
    steps: Annotated[int, typer.Option(min=1, metavar="N", help="Number of Lanczos steps per spectrum.")] = 64,
    seed: options.Seed = 0,
    batch_size: options.BatchSize = 256,
    memory: options.Memory = None,
    device: options.Device = "cpu",
    dtype: options.Dtype = "float32",
    out: options.Out = Path("spectra"),
) -> None:
    """Explain the outliers of the spectra by the class structure of G.

    G = G_class + G_cross + G_within + G_same, by the class means of the logit gradients. The eigenvalues of all parts
    but G_within are computed from these means alone. Each outlier is attributed to the parts by its eigenvector, and
    the means are projected out of the Hessian to see which outliers vanish. The result is saved as
    CHECKPOINT-SPLIT-ClassStructure.nc; spectra that `hesspec measure` has not saved yet are saved as well. What was
    measured with the same options is shown and not measured again.
    `hesspec report` shows all of them.
    """
    from hesspec.cli.devices import device_of
    from hesspec.cli.problem import Problem, check_folder, check_same
    from hesspec.cli.process_group import process_group
    from hesspec.spectra.record import load
    from hesspec.study.measuring import measure_structure
    from hesspec.study.text_files import is_text

    names = options.matrices_of(matrix)
    problem = Problem(
        network, data, weights, split, samples_per_class, data_folder, size, tokenizer, params, seed, device, dtype
    )
    prefix = problem.prefix(out, ["ClassStructure", *names])
    file = problem.file(out, "ClassStructure", prefix)
    given = problem.options(
        {
            "--matrix": " ".join(names),
            **({"--classes": str(classes)} if is_text(data) else {}),
            "--cross": "yes" if cross else "no",
            "--steps": str(steps),
        }
    )
    if file.exists():
        check_same(file, given)
        console.say(f"Already measured: {file}")
        _show(load(file), [], out)
        return
    model, dataset = problem.load()
    check_folder(out, [file])
    with process_group(device_of(device)) as group, console.progress() as show:
        structure = measure_structure(
            model,
            dataset,
            matrices=names,
            params=params,
            classes=classes,
            cross=cross,
            steps=steps,
            seed=seed,
            batch_size=batch_size,
            memory=memory,
            attributes=problem.attributes_with(given),
            folder=out,
            prefix=prefix,
            overwrite=False,
            on_progress=lambda what, done, total: show(f"{symbol_of(what)}, {split} set", done, total),
            group=group,
        )
    _show(structure, [file], out)


def _show(structure: "Record", saved: list[Path], out: Path) -> None:
    from hesspec.cli.tables.layout import print_results, rich_table

    print_results(map(rich_table, structure.tables()), saved, out)
