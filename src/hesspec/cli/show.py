"""`hesspec show`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from hesspec.applications.class_structure.record import ClassStructure
from hesspec.backend.files import atomic_path
from hesspec.backend.text import printable
from hesspec.cli import console
from hesspec.cli.errors import sentence_of
from hesspec.cli.tables.spectra import distinct_labels, side_by_side
from hesspec.cli.tables.structures import explained
from hesspec.plot import plot_spectrum
from hesspec.spectra.record import Record, load
from hesspec.spectra.spectrum import Spectrum

EXAMPLE = "hesspec show spectra/*.nc --png spectra.png"


def command(
    files: Annotated[list[Path], typer.Argument(metavar="FILE", help="NetCDF files written by hesspec.")],
    png: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Plot all spectra in one figure and save it to this file.")
    ] = None,
) -> None:
    """Print results as tables: the main numbers of spectra with all outliers, and what class structures explain.

    Files that cannot be read are reported and left out; the exit status is then 1.
    """
    loaded = _loaded(files)
    spectra = {file: found for file, found in loaded.items() if isinstance(found, Spectrum)}
    if spectra:
        _show_spectra(spectra)
    for file, found in loaded.items():
        if isinstance(found, ClassStructure):
            console.output.print("", f"{_description(found)}{printable(str(file))}", soft_wrap=True)
            for table in explained(found):
                console.output.print("", table)
    if png is not None:
        if not spectra:
            raise ValueError("--png draws spectra, and none of these files holds one.")
        with atomic_path(png) as temporary:
            plot_spectrum(_labelled(spectra)).savefig(temporary, format="png", dpi=200)
        console.output.print(f"Saved {png}", soft_wrap=True)
    if len(loaded) < len(set(files)):
        raise typer.Exit(1)


def _loaded(files: list[Path]) -> dict[Path, Any]:
    """Results by their files; those that cannot be read are reported and left out, unless there is no other."""
    loaded: dict[Path, Any] = {}
    for file in files:
        try:
            loaded[file] = load(file)
        except (ValueError, OSError) as error:
            if len(files) == 1:
                raise
            console.warn(f"left out: {sentence_of(error)}")
    if not loaded:
        raise ValueError("None of these files can be read.")
    return loaded


def _labelled(spectra: dict[Path, Spectrum]) -> dict[str, Spectrum]:
    labels = distinct_labels(list(spectra.values()), [printable(str(file)) for file in spectra])
    return dict(zip(labels, spectra.values(), strict=True))


def _show_spectra(spectra: dict[Path, Spectrum]) -> None:
    labelled = _labelled(spectra)
    for (label, spectrum), file in zip(labelled.items(), spectra, strict=True):
        name = printable(str(file))
        console.output.print(f"{label}: {_description(spectrum)}{name}" if label != name else label, soft_wrap=True)
    for table in side_by_side(labelled, width=console.output.width):
        console.output.print("", table)


def _description(found: Record) -> str:
    """Network, data set, split and checkpoint, as far as the file names them."""
    attributes = found.attributes
    names = ("network", "dataset", "split", "checkpoint")
    parts = [printable(str(attributes[name])) for name in names if name in attributes]
    return f"{', '.join(parts)}; " if parts else ""
