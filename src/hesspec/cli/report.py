"""`hesspec report`."""

from pathlib import Path
from typing import Annotated

import typer

from hesspec.cli import console
from hesspec.report.page import report_on

EXAMPLE = "hesspec report spectra"


def command(
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="Folder with NetCDF files; subfolders are searched, too.")
    ],
    all_figures: Annotated[
        bool,
        typer.Option(
            "--all-figures",
            help="For a study, write PDF figures at every sample size and epoch instead of only at the last; takes "
            "about one second per figure.",
        ),
    ] = False,
) -> None:
    """Write report.html, one page that shows all spectra in a folder and opens without an internet connection.

    If the folder contains a training.json as `hesspec demo` writes it, the page also shows the training. Files that
    cannot be read are reported, here and on the page, and left out; the exit status is then 1.
    """
    page, unread = report_on(folder, all_figures=all_figures)
    console.output.print(f"Report: {page}", soft_wrap=True)
    if unread:
        raise typer.Exit(1)
