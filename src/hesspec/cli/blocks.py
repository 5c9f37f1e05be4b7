"""`hesspec measure --by KIND`: the spectra of diagonal blocks."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Literal

from hesspec.backend.ranks import Ranks
from hesspec.backend.suggest import unknown
from hesspec.cli import console
from hesspec.cli.completion import BLOCKS
from hesspec.cli.devices import device_of
from hesspec.cli.problem import COMMAND, Problem, check_folder, check_same
from hesspec.cli.process_group import process_group
from hesspec.cli.resuming import file_content
from hesspec.cli.tables.layout import rich_table
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
    command = {
        "NETWORK": problem.network,
        "--data": problem.data,
        "--data-folder": str(problem.data_folder),
        "--weights": "none" if problem.weights is None else file_content(problem.weights),
        "--split": problem.split,
        "--samples-per-class": str(problem.samples_per_class),
        "--size": str(problem.size),
        **({} if problem.tokenizer is None else {"--tokenizer": str(problem.tokenizer)}),
        **({} if loss == CROSS_ENTROPY else {"--loss": loss}),
        "--params": " ".join(problem.params or ["all"]),
        "--by": by,
        "--steps": str(steps),
        "--probes": str(probes),
        "--seed": str(problem.seed),
        "--dtype": problem.dtype,
    }
    results = [blocks_name(name, by) for name in names]
    model, dataset = problem.load()
    with process_group(device_of(problem.device)) as group, console.progress() as show:
        ranks = Ranks(group)

        def prepare() -> tuple[str, list[str]]:
            # Only the first rank looks and writes.
            if ranks.rank:
                return "", []
            prefix = problem.prefix(out, results)
            files = {name: problem.file(out, blocks_name(name, by), prefix) for name in names}
            measured = [name for name, file in files.items() if file.exists()]
            for name in measured:
                check_same(files[name], command)
            check_folder(out, [file for name, file in files.items() if name not in measured])
            if measured:
                console.say(f"Already measured: {', '.join(str(files[name]) for name in measured)}")
            return prefix, measured

        prefix, measured = ranks.gather(ranks.together(prepare))[0]
        measure_blocks(
            model,
            dataset,
            by,
            matrices=[name for name in names if name not in measured],
            params=problem.params,
            steps=steps,
            probes=probes,
            seed=problem.seed,
            loss=loss,
            batch_size=batch_size,
            memory=memory,
            attributes={**problem.attributes, COMMAND: json.dumps(command)},
            folder=out,
            prefix=prefix,
            overwrite=False,
            on_progress=lambda name, done, total: show(f"{symbol_of(name)} by {by}, {problem.split} set", done, total),
            group=group,
        )
    if console.output.quiet:
        return  # the first rank has written the results and prints them
    files = {name: problem.file(out, blocks_name(name, by), prefix) for name in names}
    for name, file in files.items():
        console.output.print(f"{symbol_of(name)} by {by}")
        for table in load(file).tables():
            console.output.print(rich_table(table), "")
        if name not in measured:
            console.output.print(f"Saved {file}", soft_wrap=True)
    console.next_step(f"hesspec report {shlex.quote(str(out))}", "makes a page of all results there")
