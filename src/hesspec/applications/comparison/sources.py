"""What is compared: spectra, files and folders, and the places at which they can be matched."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from hesspec.backend.text import kind_of, printable
from hesspec.matrices import MATRICES, matrix_names, symbol_of
from hesspec.spectra.folder import Unread, read_results, result_files
from hesspec.spectra.record import load
from hesspec.spectra.spectrum import Spectrum
from hesspec.spectra.study_names import SPLITS

__all__ = ["Item", "Matched", "Source", "matched", "read_source", "selected"]

# What distinguishes spectra of one training, in the order of their labels, and what may distinguish others in a folder.
PLACE: Final = ("matrix", "split", "point", "train_samples_per_class", "training_seed")
TRAINING: Final = ("network", "dataset", "optimizer", "start", "learning_rate")
EXTRA: Final = (*TRAINING, "params", "samples_per_class", "seed")
WORDS: Final = {
    "train_samples_per_class": "n = ",
    "samples_per_class": "n = ",
    "optimizer": "by ",
    "start": "from ",
    "learning_rate": "rate ",
    "training_seed": "seed ",
    "seed": "seed ",
}
LAST: Final = "end"


@dataclass(frozen=True)
class Item:
    """One spectrum of a source.

    Attributes
    ----------
    spectrum : Spectrum
    pairs : Eigenpairs or None
        Its eigenvectors, if they were given.
    path : Path or None
        File that it was read from.
    """

    spectrum: Spectrum
    pairs: Any = None
    path: Path | None = None

    def value(self, name: str) -> str:
        """Return an attribute as text, empty if it is unknown; "point" is the checkpoint, or else the epoch."""
        attributes = self.spectrum.attributes
        if name == "point":
            if attributes.get("checkpoint"):
                return printable(str(attributes["checkpoint"]))
            return f"epoch {attributes['epoch']}" if "epoch" in attributes else ""
        found = printable(str(attributes.get(name, "")))
        return symbol_of(found) if name == "matrix" else WORDS.get(name, "") + found if found else ""


@dataclass(frozen=True)
class Source:
    """One of the things that are compared.

    Attributes
    ----------
    name : str
        Name of the file or folder; empty for objects.
    items : list of Item
    unread : list of str
        Files that could not be read, with the reason.
    """

    name: str
    items: list[Item]
    unread: list[str]


def read_source(given: object) -> Source:
    """Return a spectrum, the spectrum in a file, or all spectra in a folder and its subfolders.

    Raises
    ------
    ValueError, OSError
        If it is something else, or cannot be read.
    """
    if isinstance(given, Spectrum):
        return Source("", [Item(given)], [])
    found = getattr(given, "spectrum", None)
    if isinstance(found, Spectrum) and hasattr(given, "vectors"):
        return Source("", [Item(found, pairs=given)], [])
    if not isinstance(given, str | os.PathLike):
        raise ValueError(
            f"{kind_of(given, first=True)} cannot be compared; pass spectra, eigenpairs, or the names of their files, "
            "of folders with spectra or of studies."
        )
    path = Path(given)
    if path.is_dir():
        return _folder(path)
    spectrum = load(path)
    if not isinstance(spectrum, Spectrum):
        raise ValueError(
            f"{str(path)!r} contains a result of another kind ({spectrum.KIND}); only spectra are compared."
        )
    return Source(path.name, [Item(spectrum, path=path)], [])


def _folder(path: Path) -> Source:
    unread: Unread = []
    results = read_results(result_files(path), unread)
    items = [Item(result, path=file) for file, result in results if isinstance(result, Spectrum)]
    if not items:
        raise ValueError(f"There are no readable spectra in {str(path)!r}; measure some with `hesspec measure`.")
    return Source(path.resolve().name, items, [reason for _, reason in unread])


def selected(
    source: Source,
    name: str,
    *,
    matrix: str | Sequence[str] | None,
    split: str | None,
    checkpoint: str | None,
    epoch: float | None,
) -> Source:
    """Keep the spectra of a source with these attributes, as in `hesspec.compare`.

    Raises
    ------
    ValueError
        If there are none; the message names what there is.
    """
    items = source.items
    if matrix is not None:
        symbols = [symbol_of(each) for each in matrix_names([matrix] if isinstance(matrix, str) else matrix)]
        items = _kept(items, name, "matrix", ", ".join(symbols), lambda item: item.value("matrix") in symbols)
    if split is not None:
        items = _kept(items, name, "split", split, lambda item: item.value("split") == split)
    if epoch is not None:
        items = _kept(items, name, "epoch", f"{epoch:g}", lambda item: item.spectrum.attributes.get("epoch") == epoch)
    if checkpoint is not None:
        named = [item for item in items if item.spectrum.attributes.get("checkpoint") == checkpoint]
        if not named and checkpoint == LAST:
            named = _last(items)
        items = named or _kept(items, name, "checkpoint", checkpoint, lambda _: False)
    return Source(source.name, items, source.unread)


def _kept(items: list[Item], name: str, what: str, wanted: str, keep: Callable[[Item], bool]) -> list[Item]:
    found = [item for item in items if keep(item)]
    if not found:
        there = sorted({item.value("point" if what in ("checkpoint", "epoch") else what) or "none" for item in items})
        raise ValueError(f"{name} has no spectrum with {what} {wanted}; it has {', '.join(there)}.")
    return found


def _last(items: list[Item]) -> list[Item]:
    """Spectra at the last epoch of each training."""
    last: dict[tuple[str, ...], float] = {}

    def training(item: Item) -> tuple[str, ...]:
        return tuple(item.value(name) for name in (*TRAINING, "train_samples_per_class", "training_seed"))

    def epoch(item: Item) -> float:
        value = item.spectrum.attributes.get("epoch")
        return float(value) if isinstance(value, int | float) else -1.0

    for item in items:
        last[training(item)] = max(last.get(training(item), 0.0), epoch(item))
    return [item for item in items if epoch(item) == last[training(item)]]


@dataclass(frozen=True)
class Matched:
    """Spectra of all sources at the same places.

    Attributes
    ----------
    places : list of str
        Labels of what all sources have.
    items : list of list of Item
        For each source, its spectrum at each place.
    unmatched : list of str
        Labels of what only some sources have, each with the name of its source.
    notes : list of str
        Spectra that were left out because there is a newer one of the same.
    """

    places: list[str]
    items: list[list[Item]]
    unmatched: list[str]
    notes: list[str]


def matched(sources: Sequence[Source], names: Sequence[str]) -> Matched:
    """Match spectra by matrix, split and checkpoint, and by whatever else distinguishes those of one source.

    An attribute that has a single value in each source is not matched: it is what the sources may differ in.

    Raises
    ------
    ValueError
        If the sources have nothing in common.
    """
    varying = [name for name in PLACE if any(len(_values(source, name)) > 1 for source in sources)]
    for name in EXTRA:
        if all(len({_key(item, varying) for item in source.items}) == len(source.items) for source in sources):
            break
        if any(len(_values(source, name)) > 1 for source in sources):
            varying.append(name)
    tables: list[dict[tuple[str, ...], Item]] = []
    notes: list[str] = []
    for source, called in zip(sources, names, strict=True):
        table: dict[tuple[str, ...], Item] = {}
        for item in sorted(source.items, key=lambda item: str(item.spectrum.attributes.get("created", ""))):
            key = _key(item, varying)
            if key in table:
                notes.append(f"{called}: {table[key].path} is older than {item.path}, which is compared.")
            table[key] = item
        tables.append(table)
    ordered = sorted((item for source in sources for item in source.items), key=_rank)
    keys = list(dict.fromkeys(_key(item, varying) for item in ordered))
    common = [key for key in keys if all(key in table for table in tables)]
    if not common:
        there = "; ".join(
            f"{name} has {', '.join(_label(key) for key in table)}" for name, table in zip(names, tables, strict=True)
        )
        raise ValueError(f"There is nothing to compare: no spectrum is of the same {_words(varying)}: {there}.")
    unmatched = [
        f"{name}: {_label(key)}"
        for name, table in zip(names, tables, strict=True)
        for key in keys
        if key in table and key not in common
    ]
    # What all sources agree on is part of the label, though it matches nothing.
    shared = [name for name in PLACE[:3] if len({item.value(name) for table in tables for item in table.values()}) == 1]
    places = [
        ", ".join(
            text
            for name in (*PLACE, *EXTRA)
            if name in varying or name in shared
            for text in [tables[0][key].value(name)]
            if text
        )
        for key in common
    ]
    return Matched(places, [[table[key] for key in common] for table in tables], unmatched, notes)


def _rank(item: Item) -> tuple[Any, ...]:
    """Order of places: by sample size, training, epoch, split, and matrix in display order."""
    attributes, symbols = item.spectrum.attributes, [matrix.symbol for matrix in MATRICES.values()]
    numbers = [attributes.get(name) for name in ("train_samples_per_class", "training_seed", "epoch")]
    symbol, split = item.value("matrix"), item.value("split")
    return (
        *(float(number) if isinstance(number, int | float) else -1.0 for number in numbers),
        item.value("point"),
        SPLITS.index(split) if split in SPLITS else len(SPLITS),
        symbols.index(symbol) if symbol in symbols else len(symbols),
        symbol,
    )


def _values(source: Source, name: str) -> set[str]:
    return {item.value(name) for item in source.items}


def _key(item: Item, names: Sequence[str]) -> tuple[str, ...]:
    return tuple(item.value(name) for name in names)


def _label(key: tuple[str, ...]) -> str:
    return ", ".join(part for part in key if part) or "a spectrum"


def _words(names: Sequence[str]) -> str:
    words = [
        {"point": "checkpoint", "train_samples_per_class": "sample size"}.get(n, n.replace("_", " ")) for n in names
    ]
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]]))
