"""`hesspec compare`."""

from json import dumps
from pathlib import Path
from typing import Annotated

import typer

from hesspec.applications.comparison.compare import compare
from hesspec.applications.comparison.record import Comparison
from hesspec.backend.text import printable
from hesspec.cli import console
from hesspec.cli.exports import check_choice, check_figure, check_page, differences_as_csv, save_figure
from hesspec.cli.tables.comparisons import compared

EXAMPLE = "hesspec compare spectra/sgd-train-Hessian.nc spectra/adam-train-Hessian.nc --figure sgd-adam.png"


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
    figure: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Plot the spectra on one axis and save the figure as .pdf, .svg or .png."),
    ] = None,
    page: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write a page of the figure and all differences, with a name in .html."),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print all differences as JSON instead of tables.")] = False,
    csv: Annotated[
        bool, typer.Option("--csv", help="Print a row of CSV for each difference instead of tables.")
    ] = False,
) -> None:
    """Compare spectra with the first of them: numbers, distances and eigenspaces, each difference with its error.

    Spectra of folders are matched by matrix, split and checkpoint (or epoch), and by sample size and seed of a study.
    Spectra that only some of the folders contain are listed and not compared.
    """
    check_choice(json=json, csv=csv)
    check_figure(figure)
    check_page(page)
    found = compare(*sources, names=label, matrix=matrix, split=split, checkpoint=checkpoint, epoch=epoch)
    if json:
        typer.echo(dumps(found.to_json(), indent=1, ensure_ascii=False, allow_nan=False))
    elif csv:
        typer.echo(differences_as_csv(found))
    else:
        for table in compared(found):
            console.output.print(table, "")
    for remark in found.remarks():
        console.say(printable(remark))
    saved = _saved(found, figure, page)
    for file in saved:
        if json or csv:
            console.say(f"Saved {file}")
        else:
            console.output.print(f"Saved {file}", soft_wrap=True)
    if found.is_long and not saved and not json and not csv:
        console.say(
            "All numbers: --page compared.html, --csv or --json; fewer spectra: --matrix, --split, --checkpoint."
        )


def _saved(found: Comparison, figure: Path | None, page: Path | None) -> list[Path]:
    """Write the figure and the page, if they are wanted, and return their names."""
    saved = []
    if figure is not None:
        save_figure(found.plot(), figure)
        saved.append(figure)
    if page is not None:
        # Imports plotly.
        from hesspec.report.comparison_page import write_comparison

        saved.append(write_comparison(found, page))
    return saved
