"""`hesspec show`."""

from pathlib import Path
from typing import Annotated

import typer

from hesspec.backend.files import atomic_path
from hesspec.backend.text import printable
from hesspec.cli import console
from hesspec.cli.errors import sentence_of
from hesspec.cli.tables.spectra import distinct_labels, side_by_side
from hesspec.plot import plot_spectrum
from hesspec.spectra.spectrum import Spectrum, load

EXAMPLE = "hesspec show spectra/*.nc --png spectra.png"


def command(
    files: Annotated[list[Path], typer.Argument(metavar="FILE", help="NetCDF files written by hesspec.")],
    png: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Plot all spectra in one figure and save it to this file.")
    ] = None,
) -> None:
    """Print spectra as tables: their main numbers, and all outliers with error bounds.

    Files that cannot be read are reported and left out; the exit status is then 1.
    """
    loaded: dict[Path, Spectrum] = {}
    for file in files:
        try:
            loaded[file] = load(file)
        except (ValueError, OSError) as error:
            if len(files) == 1:
                raise
            console.warn(f"left out: {sentence_of(error)}")
    if not loaded:
        raise ValueError("None of these files can be read.")
    names = [printable(str(file)) for file in loaded]
    labels = distinct_labels(list(loaded.values()), names)
    spectra = dict(zip(labels, loaded.values(), strict=True))
    for label, name in zip(labels, names, strict=True):
        console.output.print(
            f"{label}: {_description(spectra[label])}{name}" if label != name else label, soft_wrap=True
        )
    for table in side_by_side(spectra, width=console.output.width):
        console.output.print("", table)
    if png is not None:
        with atomic_path(png) as temporary:
            plot_spectrum(spectra).savefig(temporary, format="png", dpi=200)
        console.output.print(f"Saved {png}", soft_wrap=True)
    if len(loaded) < len(set(files)):
        raise typer.Exit(1)


def _description(spectrum: Spectrum) -> str:
    """Network, data set, split and checkpoint, as far as the file names them."""
    attributes = spectrum.attributes
    names = ("network", "dataset", "split", "checkpoint")
    parts = [printable(str(attributes[name])) for name in names if name in attributes]
    return f"{', '.join(parts)}; " if parts else ""
