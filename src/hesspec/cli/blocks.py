"""`hesspec measure --by KIND`: the spectra of diagonal blocks."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from hesspec.backend.ranks import Ranks
from hesspec.backend.suggest import unknown
from hesspec.cli import console
from hesspec.cli.completion import BLOCKS
from hesspec.cli.devices import device_of
from hesspec.cli.problem import Problem
from hesspec.cli.process_group import process_group
from hesspec.cli.tables.layout import print_results, rich_table
from hesspec.matrices import symbol_of
from hesspec.spectra.record import load
from hesspec.study.losses import CROSS_ENTROPY
from hesspec.study.measuring_blocks import blocks_name, measure_blocks

__all__ = ["measure_by_block"]


def measure_by_block(
    problem: Problem,
    by: str,
    names: list[str],
    steps: int | Literal["auto"],
    probes: int,
    loss: str,
    batch_size: int,
    memory: str | None,
    out: Path,
) -> None:
    """Measure the blocks of matrices, save a file for each matrix, and print their tables.

    Raises
    ------
    ValueError
        If the kind of blocks is unknown.
    FileExistsError
        If a file exists that was measured with other options.
    """
    if by not in BLOCKS:
        raise ValueError(unknown("kind of blocks", by, BLOCKS))
    options = problem.options(
        {
            **({} if loss == CROSS_ENTROPY else {"--loss": loss}),
            "--by": by,
            "--steps": str(steps),
            "--probes": str(probes),
        }
    )
    results = {name: blocks_name(name, by) for name in names}
    model, dataset = problem.load()
    with process_group(device_of(problem.device)) as group, console.progress() as show:
        ranks = Ranks(group)

        # Only the first rank looks and writes.
        prefix, measured = ranks.gather(
            ranks.together(
                lambda: problem.prepare(out, list(results.values()), options) if ranks.rank == 0 else ("", [])
            )
        )[0]
        measure_blocks(
            model,
            dataset,
            by,
            matrices=[name for name, result in results.items() if result not in measured],
            params=problem.params,
            steps=steps,
            probes=probes,
            seed=problem.seed,
            loss=loss,
            batch_size=batch_size,
            memory=memory,
            attributes=problem.attributes_with(options),
            folder=out,
            prefix=prefix,
            overwrite=False,
            on_progress=lambda name, done, total: show(f"{symbol_of(name)} by {by}, {problem.split} set", done, total),
            group=group,
        )
    if console.output.quiet:
        return  # the first rank has written the results and prints them
    files = {name: problem.file(out, result, prefix) for name, result in results.items()}
    tables = []
    for name, file in files.items():
        for table in load(file).tables():
            tables.append(rich_table(table))
            tables[-1].title = f"{symbol_of(name)} by {by}"
    print_results(tables, [file for name, file in files.items() if results[name] not in measured], out)
