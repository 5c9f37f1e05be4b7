"""`hesspec report`."""

from pathlib import Path
from typing import Annotated

import typer

from hesspec.cli import console
from hesspec.report.page import report_on

EXAMPLE = "hesspec report spectra"


def command(
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
    page, unread = report_on(folder, all_figures=all_figures)
    console.output.print(f"Report: {page}", soft_wrap=True)
    if unread:
        raise typer.Exit(1)
