"""`hesspec demo`."""

import shlex
from pathlib import Path
from typing import Annotated

import typer

from hesspec.cli import console

EXAMPLE = "hesspec demo"


def command(
    out: Annotated[
        Path,
        typer.Option(metavar="FOLDER", help="Output folder: new, empty, or that of an interrupted demo to resume."),
    ] = Path("hesspec-demo"),
    seed: Annotated[
        int,
        typer.Option(
            min=0, max=2**64 - 1, metavar="N", help="Random seed of the weights, the sample order and the probes."
        ),
    ] = 0,
) -> None:
    """Train a small network on scanned digits, measure its spectra during training, and write a report.

    The digits come with scikit-learn; nothing is downloaded. Hess, G and H are measured at initialisation, in the
    middle and at the end of training, on the training and on the test set. This takes less than two minutes and writes
    18 spectra (NetCDF files), the weights, figures, and an HTML page that shows all of them. It uses a single thread,
    so that a seed gives the same numbers on any number of cores.

    The study is that of the preset `demo` of `hesspec study`. If it is interrupted, the same command resumes it.
    """
    from hesspec.cli.demo_study import CHECKPOINTS, demo, demo_study
    from hesspec.cli.tables.spectra import stacked

    with console.progress() as show:
        result = demo(demo_study(seed), out, on_progress=show)
    for checkpoint in CHECKPOINTS:
        members = [spectrum for key, spectrum in result.spectra.items() if key[0] == checkpoint]
        record = next(r for r in result.history if r.epoch == members[0].attributes["epoch"])
        title = (
            f"{checkpoint} (epoch {record.epoch}): training loss {record.train_loss:.3g}, "
            f"test error {record.test_error:.1%}"
        )
        console.output.print(stacked(members, title=title, width=console.output.width), "")
    console.output.print("largest: ± error bound; trace: ± standard error; negative: share of negative eigenvalues")
    console.output.print(f"Report: {out / 'report.html'}", soft_wrap=True)
    weights = result.weights["end"]
    console.next_step(f"hesspec show {shlex.quote(str(weights.with_suffix('')))}-*.nc", "prints all outliers")
