"""`hesspec compare`."""

import json
from pathlib import Path
from typing import Annotated

import typer

from hesspec.applications.comparison.compare import compare
from hesspec.backend.files import atomic_path
from hesspec.backend.text import printable
from hesspec.cli import console
from hesspec.cli.tables.comparisons import compared

EXAMPLE = "hesspec compare spectra/sgd-train-Hessian.nc spectra/adam-train-Hessian.nc --png sgd-adam.png"


def command(
    sources: Annotated[
        list[Path],
        typer.Argument(
            metavar="A B ...", help="NetCDF files of spectra, folders of them, or folders of studies; at least two."
        ),
    ],
    label: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Name of A, of B and so on.", show_default="what distinguishes them"),
    ] = None,
    matrix: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Compare only this matrix. Can be repeated.")
    ] = None,
    split: Annotated[str | None, typer.Option(metavar="NAME", help="Compare only this split: train or test.")] = None,
    checkpoint: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Compare only this checkpoint; end is the last epoch if they have no names."),
    ] = None,
    epoch: Annotated[float | None, typer.Option(metavar="N", help="Compare only this epoch.")] = None,
    csv: Annotated[Path | None, typer.Option(metavar="FILE", help="Write all differences as CSV.")] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write all differences as JSON.")
    ] = None,
    png: Annotated[Path | None, typer.Option(metavar="FILE", help="Plot the spectra on one axis.")] = None,
) -> None:
    """Compare spectra with the first of them: numbers, distances and eigenspaces, each difference with its error.

    Spectra of folders are matched by matrix, split and checkpoint (or epoch), and by sample size and seed of a study.
    Spectra that only some of the folders contain are listed and not compared.
    """
    found = compare(*sources, names=label, matrix=matrix, split=split, checkpoint=checkpoint, epoch=epoch)
    for table in compared(found):
        console.output.print(table, "")
    for remark in found.remarks():
        console.say(printable(remark))
    if csv is not None:
        with atomic_path(csv) as temporary:
            found.to_dataframe().to_csv(temporary, index=False)
    if json_file is not None:
        with atomic_path(json_file) as temporary:
            temporary.write_text(json.dumps(found.to_json(), indent=1, ensure_ascii=False), encoding="utf-8")
    if png is not None:
        with atomic_path(png) as temporary:
            found.plot().savefig(temporary, format="png", dpi=200)
    for file in (csv, json_file, png):
        if file is not None:
            console.output.print(f"Saved {file}", soft_wrap=True)
