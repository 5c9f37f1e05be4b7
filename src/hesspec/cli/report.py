"""`hesspec report`."""

import webbrowser
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from hesspec.backend.text import printable
from hesspec.cli import console
from hesspec.report.page import Report

EXAMPLE = "hesspec report spectra"


class Figures(StrEnum):
    """Figures of a study that are written as PDF."""

    LAST = "last"
    ALL = "all"


def command(
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="Folder with NetCDF files; subfolders are searched, too.")
    ],
    figures: Annotated[
        Figures | None,
        typer.Option(
            help="Also write figures of studies as PDF: at the largest sample size and the last epoch, or at all of "
            "them. Each takes about one second."
        ),
    ] = None,
    show: Annotated[bool, typer.Option("--open", help="Open the page in the browser.")] = False,
) -> None:
    """Write report.html, one page that shows all spectra in a folder and opens without an internet connection.

    A folder of several studies or runs gives one page with all of them. If the folder contains a training.json as
    `hesspec study` writes it, the page also shows the training. Files that cannot be read are reported, here and on the
    page, and left out; the exit status is then 1.
    """
    with console.notes.status(Text(f"Reading {printable(str(folder))} ...")):
        report = Report(folder)
        page = report.write()
    console.output.print(f"Report: {page}", soft_wrap=True)
    if show:
        webbrowser.open(page.resolve().as_uri())
    if figures is not None:
        with console.progress() as on_progress:
            written = report.write_figures(
                everywhere=figures is Figures.ALL,
                on_figure=lambda done, total: on_progress("writing figures", done, total),
            )
        where = f"{len(written)} PDF files in {page.parent / 'figures'}"
        console.output.print(f"Figures: {where if written else 'none, as only studies have them'}", soft_wrap=True)
    if report.unread:
        raise typer.Exit(1)
