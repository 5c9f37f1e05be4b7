"""Tables of the benchmarks: on the terminal, and between the markers of each script in README.md or another page."""

from __future__ import annotations

import argparse
import importlib.util
import os
import platform
import statistics
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

__all__ = [
    "ROOT",
    "Block",
    "Target",
    "arguments",
    "begin",
    "console",
    "counted",
    "markdown",
    "publish",
    "ratios",
    "rewrite",
    "spread",
    "targets",
]

ROOT = Path(__file__).parents[1]
README = Path(__file__).with_name("README.md")
PEERS = {"curvlinops": "curvlinops-for-pytorch", "hessian_eigenthings": "hessian-eigenthings"}
BUSY = 0.3

console = Console(width=160)


@dataclass(frozen=True)
class Block:
    """A table with its heading and what is to be known of it; rows that begin with a name in `bold` stand out."""

    title: str
    note: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    bold: tuple[str, ...] = ()


@dataclass(frozen=True)
class Target:
    """A number that is to be reached: at least, or at most where `above` is false. Measured None: not in this run."""

    what: str
    wanted: float
    measured: float | None
    form: str = "{:.2f}"
    above: bool = True

    @property
    def row(self) -> tuple[str, ...]:
        """For the table."""
        wanted = f"{'≥' if self.above else '≤'} {self.form.format(self.wanted)}"
        if self.measured is None:
            return self.what, wanted, "not reached in the scan", "no"
        reached = self.measured >= self.wanted if self.above else self.measured <= self.wanted
        return self.what, wanted, self.form.format(self.measured), "yes" if reached else "**no**"


def targets(rows: Sequence[Target]) -> Block:
    """What was to be reached, beside what was measured."""
    return Block(
        "Targets",
        "What this version set out to reach.",
        ("what", "target", "measured", "reached"),
        [target.row for target in rows],
    )


def arguments(doc: str | None, quick: str) -> argparse.ArgumentParser:
    """Parser of the options that all scripts have; the first line of a script's docstring, and what --quick does."""
    parser = argparse.ArgumentParser(description=(doc or "").partition("\n")[0])
    parser.add_argument("--threads", type=int, help="threads of PyTorch (default: all cores)")
    parser.add_argument("--quick", action="store_true", help=quick)
    return parser


def begin(threads: int | None) -> None:
    """Set the number of threads; leave with a sentence where a library to compare with is missing."""
    torch.set_num_threads(threads or os.cpu_count() or 1)
    missing = [package for module, package in PEERS.items() if importlib.util.find_spec(module) is None]
    if missing:
        raise SystemExit(f"The comparison needs {' and '.join(missing)}: pip install hesspec[bench]")


def spread(values: Iterable[float], form: str) -> str:
    """Median and, where they are not all the same, least and greatest."""
    numbers = list(values)
    middle, low, high = (form.format(f(numbers)) for f in (statistics.median, min, max))
    return middle if low == high else f"{middle} ({low}–{high})"


def ratios(numerators: Iterable[float], denominators: Iterable[float]) -> list[float]:
    """Ratios, repeat by repeat."""
    return [above / below for above, below in zip(numerators, denominators, strict=True)]


def counted(number: int, noun: str) -> str:
    """One seed, two seeds: in figures, with an s where one is due."""
    return f"{number} {noun}" + "s" * (number != 1)


def publish(
    section: str,
    what: str,
    blocks: Sequence[Block],
    load: float,
    start: float,
    *,
    write: bool,
    page: Path = README,
) -> None:
    """Print the tables, and write them into the page unless this was a smoke run.

    Parameters
    ----------
    section : str
        Name of the markers in the page, that of the script.
    what : str
        What was measured, before machine and versions.
    blocks : sequence of Block
    load : float
        Load average before the measurement.
    start : float
        `time.perf_counter()` at the start.
    write : bool
        Whether to write.
    page : Path
        Where to.
    """
    seconds = time.perf_counter() - start
    heading = f"{what}, {surroundings(load)} Took {seconds:.0f} s."
    console.print(f"\n{heading.replace('**', '')}\n", markup=False)
    for block in blocks:
        table = Table(
            *block.columns, title=block.title, caption=block.note, title_justify="left", caption_justify="left"
        )
        for row in block.rows:
            bold = "bold" if block.bold and row[0].startswith(block.bold) else None
            table.add_row(*(cell.replace("**", "") for cell in row), style=bold)
        console.print(table)
    console.print(f"{seconds:.0f} s in all.")
    if write:
        rewrite(section, "\n".join([heading, "", *map(markdown, blocks)]), page)
        console.print(f"The tables are in {page.relative_to(ROOT)}.")


def markdown(block: Block) -> str:
    """A table for the README."""
    rows = [block.columns, ("---", *["---:"] * (len(block.columns) - 1)), *block.rows]
    lines = "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows)
    return f"#### {block.title}\n\n{block.note}\n\n{lines}\n"


def surroundings(load: float) -> str:
    """Machine, versions, date: what the numbers depend on."""
    packages = ("hesspec", *PEERS.values(), "torch", "numpy", "scipy")
    text = (
        f"float32, {processor()}, {os.cpu_count()} cores, {counted(torch.get_num_threads(), 'thread')}, "
        f"{platform.system()}, Python {platform.python_version()}, "
        + ", ".join(f"{package} {version(package)}" for package in packages)
        + f"; {time.strftime('%Y-%m-%d')}."
    )
    if load > BUSY * (os.cpu_count() or 1):
        text += f" **Other processes were running (load average {load:.1f}): the times are too long and scatter.**"
    else:
        text += f" Load average before the start {load:.1f}."
    return text


def processor() -> str:
    """Name of the processor."""
    listing = Path("/proc/cpuinfo")
    lines = listing.read_text().splitlines() if listing.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def rewrite(section: str, text: str, page: Path = README) -> None:
    """Put the tables between the markers of the section in a page."""
    begin, end = f"<!-- {section} -->", f"<!-- /{section} -->"
    before, found, rest = page.read_text().partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise ValueError(f"{page} has no {begin} followed by {end} to write the table between.")
    page.write_text(f"{before}{begin}\n{text}{end}{after}")
