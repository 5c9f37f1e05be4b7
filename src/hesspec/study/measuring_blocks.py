"""Measurement of diagonal blocks of curvature matrices by name, for a network on a data set."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch.distributed as dist
from torch import nn

from hesspec.applications.blocks.measuring import by_block
from hesspec.applications.blocks.record import BlockSpectra
from hesspec.backend.memory_shares import shares_of
from hesspec.backend.progress import Meter, Progress
from hesspec.matrices import MATRICES, matrix_names
from hesspec.operators import shard_data
from hesspec.operators.risk.parameters import ParameterSpec
from hesspec.study.datasets import Dataset
from hesspec.study.losses import CROSS_ENTROPY, loss_of
from hesspec.study.measuring import Attribute, check_outputs, named, of_dataset, save_result, spectrum_file

__all__ = ["blocks_name", "measure_blocks"]


def blocks_name(matrix: str, by: str) -> str:
    """Name of a result in the name of its file.

    Examples
    --------
    >>> blocks_name("Hessian", "layer")
    'Hessian-by-layer'
    """
    return f"{matrix}-by-{by}"


def measure_blocks(
    network: nn.Module,
    dataset: Dataset,
    by: str,
    *,
    matrices: Sequence[str] = ("Hessian",),
    params: ParameterSpec = None,
    steps: int | Literal["auto"] = 64,
    probes: int = 1,
    seed: int = 0,
    loss: str = CROSS_ENTROPY,
    batch_size: int = 256,
    memory: str | int | None = None,
    attributes: Mapping[str, Attribute] | None = None,
    folder: str | os.PathLike[str] | None = None,
    prefix: str = "",
    overwrite: bool = True,
    on_progress: Progress | None = None,
    group: dist.ProcessGroup | None = None,
) -> dict[str, BlockSpectra]:
    """Measure the spectra of the blocks of curvature matrices of the mean loss; see `hesspec.by_block`.

    Parameters
    ----------
    network, dataset, matrices, params, loss, batch_size, memory, attributes, folder, prefix, overwrite, on_progress, \
    group
        See `hesspec.study.measuring.measure`. Files have the name of `blocks_name` instead of the matrix's.
    by : str
        Kind of blocks, such as "layer".
    steps, probes, seed
        See `hesspec.by_block`.

    Returns
    -------
    dict of str to BlockSpectra
        Results by the names of matrices in `hesspec.matrices.MATRICES`.

    Raises
    ------
    ValueError, NonFiniteError, MemoryError, OSError
        See `measure` and `hesspec.by_block`.

    Examples
    --------
    >>> from hesspec.study import load_dataset, small_cnn
    >>> digits = load_dataset("digits", "test", samples_per_class=2)
    >>> found = measure_blocks(small_cnn(1, 10, 8), digits, "layer", matrices=["g"], steps=8)["GaussNewton"]
    >>> len(found), found.is_whole
    (4, True)
    """
    names, function = matrix_names(matrices), loss_of(loss)
    network.eval()
    check_outputs(network, dataset)
    kept = {**of_dataset(dataset), **(attributes or {})}
    batches, writes = dataset.batches(batch_size), group is None or dist.get_rank(group) == 0
    meter = Meter(on_progress, None)
    for_products, for_basis = (None, None) if memory is None else shares_of(memory)
    results: dict[str, BlockSpectra] = {}
    for name in names:
        measured = by_block(
            network,
            function,
            batches if group is None else shard_data(batches, group),
            blocks=by,
            matrix=name,
            params=params,
            steps=steps,
            probes=probes,
            seed=seed,
            memory=for_basis,
            on_step=meter.of_steps(name, MATRICES[name].tangent / MATRICES["Hessian"].tangent),
            products_memory=for_products,
            group=group,
        )
        results[name] = replace(measured, attributes={**measured.attributes, **kept})
        if folder is not None and writes:
            file = spectrum_file(blocks_name(name, by), dataset.split, named(prefix, kept))
            save_result(results[name], Path(folder) / file, overwrite=overwrite)
    return results
