"""`hesspec show`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from hesspec.backend.shown import contents
from hesspec.backend.text import in_rows, printable
from hesspec.cli import console, options
from hesspec.cli.exports import as_csv, as_json, check_choice, check_figure, save_figure
from hesspec.cli.tables.layout import rich_table
from hesspec.cli.tables.spectra import distinct_labels, side_by_side
from hesspec.spectra.folder import Unread, read_results, result_files
from hesspec.spectra.record import Record, load
from hesspec.spectra.spectrum import Spectrum

EXAMPLE = "hesspec show spectra/*.nc --figure spectra.png"


def command(
    files: Annotated[
        list[Path], typer.Argument(metavar="FILE", help="NetCDF files written by hesspec, or folders that hold them.")
    ],
    figure: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Plot all spectra in one figure and save it as .pdf, .svg or .png."),
    ] = None,
    kind: options.Kind = "overview",
    width: Annotated[
        float | None,
        typer.Option(
            metavar="INCHES", help="Width of the figure, such as 3.25 for a column.", show_default="11 or 7.5"
        ),
    ] = None,
    label: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TEXT",
            help="Label of a spectrum, in the order of the files. Repeat it for each.",
            show_default="what tells them apart",
        ),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print all results as JSON instead of tables.")] = False,
    csv: Annotated[bool, typer.Option("--csv", help="Print a row of CSV for each spectrum instead of tables.")] = False,
) -> None:
    """Print results as tables: the main numbers of spectra with all outliers, and what other files contain.

    Files that cannot be read are reported and left out; the exit status is then 1.
    """
    check_choice(json=json, csv=csv)
    check_figure(figure)
    wanted = [found for file in files for found in _files_in(file)]
    loaded = _loaded(wanted)
    spectra = {file: found for file, found in loaded.items() if isinstance(found, Spectrum)}
    if (csv or figure is not None) and not spectra:
        raise ValueError(f"{'--csv' if csv else '--figure'} needs spectra, and none of these files holds one.")
    labelled, unshown = _labelled(spectra, label), 0
    if json:
        typer.echo(as_json(loaded))
    elif csv:
        typer.echo(as_csv(spectra))
    else:
        unshown = _print(loaded, spectra, labelled)
    if figure is not None:
        _draw(labelled, figure, kind, width)
        (console.say if json or csv else console.output.print)(f"Saved {figure}")
    if unshown or len(loaded) < len(set(wanted)):
        raise typer.Exit(1)


def _files_in(path: Path) -> list[Path]:
    """Return the file, or all NetCDF files below a folder."""
    if not path.is_dir():
        return [path]
    found = result_files(path)
    if not found:
        raise ValueError(f"The folder {str(path)!r} holds no NetCDF files.")
    return found


def _draw(labelled: dict[str, Spectrum], file: Path, kind: str, width: float | None) -> None:
    from hesspec.plot import plot_spectrum

    save_figure(plot_spectrum(labelled, kind=kind, width=width), file)  # type: ignore[arg-type]


def _loaded(files: list[Path]) -> dict[Path, Any]:
    """Results by their files; those that cannot be read are reported and left out, unless there is no other."""
    if len(files) == 1:
        return {files[0]: load(files[0])}
    unread: Unread = []
    loaded: dict[Path, Any] = dict(read_results(files, unread))
    for _, reason in unread:
        console.warn(f"left out: {reason}")
    if not loaded:
        raise ValueError("None of these files can be read.")
    return loaded


def _labelled(spectra: dict[Path, Spectrum], given: list[str] | None) -> dict[str, Spectrum]:
    """Spectra by the labels that were given, or by what tells them apart."""
    if given is None and not spectra:
        return {}
    if given is None:
        labels = distinct_labels(list(spectra.values()), [printable(name) for name in _short(list(spectra))])
    elif len(given) != len(spectra) or len(set(given)) != len(given):
        raise ValueError(f"There are {len(given)} labels for {len(spectra)} spectra; give one for each, all different.")
    else:
        labels = [printable(name) for name in given]
    return dict(zip(labels, spectra.values(), strict=True))


def _short(files: Sequence[Path]) -> list[str]:
    """Names of files without folders and suffix, or with as many folders as tell them apart."""
    for depth in range(1, max((len(file.parts) for file in files), default=1) + 1):
        names = ["/".join(file.with_suffix("").parts[-depth:]) for file in files]
        if len(set(names)) == len(names):
            return names
    return [str(file) for file in files]


def _print(loaded: dict[Path, Record], spectra: dict[Path, Spectrum], labelled: dict[str, Spectrum]) -> int:
    """Print all results; returns how many of them have values that cannot be shown."""
    unshown = 0
    for (label, spectrum), file in zip(labelled.items(), spectra, strict=True):
        name = printable(str(file))
        console.output.print(f"{label}: {_description(spectrum)}{name}", soft_wrap=True)
    for table in side_by_side(labelled, width=console.output.width):
        console.output.print("", table)
    for file, found in loaded.items():
        if not isinstance(found, Spectrum):
            console.output.print("", f"{_description(found)}{printable(str(file))}", soft_wrap=True)
            try:
                summary, tables = contents(found)
            except ValueError as error:
                console.warn(f"{str(file)!r}: {error}")
                unshown += 1
                continue
            console.output.print(in_rows(type(found).__name__, summary), soft_wrap=True)
            for shown in tables:
                console.output.print("", rich_table(shown))
    return unshown


def _description(found: Record) -> str:
    """Network, data set, split and checkpoint, as far as the file names them."""
    attributes = found.attributes
    names = ("network", "dataset", "split", "checkpoint")
    parts = [printable(str(attributes[name])) for name in names if name in attributes]
    return f"{', '.join(parts)}; " if parts else ""
