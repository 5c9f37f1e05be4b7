"""`hesspec demo`."""

from pathlib import Path
from typing import Annotated

import typer

from hesspec.cli import console
from hesspec.cli.demonstration import CHECKPOINTS, demo
from hesspec.cli.tables.spectra import stacked

EXAMPLE = "hesspec demo"


def command(
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
    with console.progress() as show:
        result = demo(out, seed=seed, on_progress=show)
    for checkpoint in CHECKPOINTS:
        members = [spectrum for key, spectrum in result.spectra.items() if key[0] == checkpoint]
        record = next(r for r in result.history if r.epoch == members[0].attributes["epoch"])
        title = (
            f"{checkpoint} (epoch {record.epoch}): loss {record.train_loss:.3g} on the training set, "
            f"{record.test_error:.1%} of the test set wrong"
        )
        console.output.print(stacked(members, title=title, width=console.output.width), "")
    console.output.print(
        "largest: ± bound of its error; trace: ± standard error; negative: share of eigenvalues below zero"
    )
    console.output.print(f"Report: {result.report}", soft_wrap=True)
