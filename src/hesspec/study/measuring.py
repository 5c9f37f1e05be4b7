"""Measurement of curvature matrices by name, for a network on a data set, and files of their spectra."""

import contextlib
import itertools
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from hesspec.applications.class_structure.attribution import class_structure
from hesspec.applications.class_structure.frequent import frequent_classes
from hesspec.applications.class_structure.record import ClassStructure
from hesspec.backend.memory_shares import shares_of
from hesspec.backend.progress import Meter, Progress
from hesspec.krylov.snapshot import remove_snapshot
from hesspec.matrices import DEFAULT_MATRICES, MATRICES, matrix_names
from hesspec.measure.plan import Plan, plan
from hesspec.measure.spectrum import spectrum
from hesspec.operators import GraphCache, shard_data
from hesspec.operators.named import operator_class
from hesspec.operators.risk.parameters import ParameterSpec
from hesspec.spectra.record import Record
from hesspec.spectra.spectrum import Spectrum
from hesspec.study.datasets import Dataset
from hesspec.study.losses import CROSS_ENTROPY, LOSSES, loss_of

__all__ = [
    "FREQUENT",
    "Attribute",
    "check_outputs",
    "measure",
    "measure_structure",
    "named",
    "of_dataset",
    "plan_measurement",
    "save_result",
    "spectrum_file",
]

Attribute = str | int | float | bool

FREQUENT = 10
"""Number of the most frequent tokens that are classes of their own in the class structure of text."""


def spectrum_file(matrix: str, split: str, checkpoint: str = "") -> str:
    """Return the name of the file to which `measure` writes a spectrum.

    Examples
    --------
    >>> spectrum_file("Hessian", "train"), spectrum_file("Hessian", "train", checkpoint="end")
    ('train-Hessian.nc', 'end-train-Hessian.nc')
    """
    return "-".join(part for part in (checkpoint, split, matrix) if part) + ".nc"


def named(prefix: str, attributes: Mapping[str, Attribute]) -> str:
    """First part of the names of files, from a prefix and the checkpoint in the attributes."""
    return "-".join(part for part in (prefix, str(attributes.get("checkpoint", ""))) if part)


def measure(
    network: nn.Module,
    dataset: Dataset,
    *,
    matrices: Sequence[str] = DEFAULT_MATRICES,
    params: ParameterSpec = None,
    steps: int | Literal["auto"] = 64,
    probes: int = 1,
    seed: int = 0,
    trace: float | None = None,
    loss: str = CROSS_ENTROPY,
    batch_size: int = 256,
    memory: str | int | None = None,
    basis: str = "auto",
    offload: str | None = None,
    attributes: Mapping[str, Attribute] | None = None,
    folder: str | os.PathLike[str] | None = None,
    prefix: str = "",
    overwrite: bool = True,
    on_progress: Progress | None = None,
    graphs: GraphCache | None = None,
    group: dist.ProcessGroup | None = None,
    snapshot: str | os.PathLike[str] | None = None,
    every: str | float = "10min",
) -> dict[str, Spectrum]:
    """Measure curvature matrices of the mean loss of a network over a data set.

    Parameters
    ----------
    network : torch.nn.Module
        Classifier with outputs (N, C), on any device. It is left in evaluation mode, in which it is measured.
    dataset : Dataset
    matrices : sequence of str
        Names in `hesspec.matrices.MATRICES`, or aliases; each is measured once, in this order.
    params : optional
        Parameters to differentiate with respect to; see `hesspec.Hessian`. By default all that require a gradient.
    steps, probes, seed, trace
        See `hesspec.spectrum`; all matrices use the same probes.
    loss : str
        Name of the loss in `hesspec.study.losses.LOSSES`, or one of the user's own, "module:callable" (see
        `hesspec.study.losses.loss_of`); by default the mean cross-entropy.
    batch_size : int
        Number of samples in a pass through the network, at least 1. It affects the result only by rounding. The network
        is traced once for each batch size that occurs.
    memory : str or int, optional
        Device memory for a measurement, in addition to the network: "8GB", "500MB", or a number of bytes. Products and
        the Krylov basis share it in the same proportion as the free memory by default.
    basis, offload
        As in `hesspec.spectrum`.
    attributes : mapping, optional
        Attributes to store with the spectra, such as network, checkpoint and epoch. Data set, split, number of classes
        and, if all classes have the same, samples per class are added automatically; of sequences their number,
        positions and vocabulary.
    folder : path, optional
        Folder in which each spectrum is saved as soon as it is complete, with a name from `spectrum_file` by matrix,
        split and the attribute `checkpoint`. It is created if it is missing.
    prefix : str, optional
        First part of these names, for folders with several networks.
    overwrite : bool
        Whether to replace existing files of these names.
    on_progress : callable, optional
        Called before the first and after every matvec with the name of the matrix, the work done on all matrices and
        their work in all (None where steps are "auto"), in matvecs of a Hessian.
    graphs : GraphCache, optional
        See `hesspec.Hessian`; for a network that is measured at several checkpoints.
    group : torch.distributed.ProcessGroup, optional
        Processes that all call this with the same network and data set, and share the work; rank 0 writes files.
    snapshot : path, optional
        Folder for a snapshot of each matrix's run, under the name of its file, from which the same call resumes. It is
        deleted once the spectrum is saved, or at the end if there is no `folder`.
    every : str or float
        As in `hesspec.spectrum`.

    Returns
    -------
    dict of str to Spectrum
        Spectra by their names in `hesspec.matrices.MATRICES`.

    Raises
    ------
    ValueError
        If a matrix is unknown, or the network, a parameter's name or a number is invalid.
    NonFiniteError
        If a loss or a product contains NaN or infinity.
    MemoryError
        If the Krylov basis does not fit into memory.
    FileExistsError
        If a file exists by the time its spectrum is complete and `overwrite` is False; the spectrum is saved under
        another name, which the message states.
    OSError
        If a file cannot be written.

    Examples
    --------
    >>> from hesspec.study import load_dataset, small_cnn
    >>> digits = load_dataset("digits", "test", samples_per_class=2)
    >>> spectra = measure(small_cnn(1, 10, 8), digits, matrices=["g"], steps=12)
    >>> spectra["GaussNewton"].attributes["samples_per_class"], spectra["GaussNewton"].matvecs
    (2, 13)
    """
    names, function = matrix_names(matrices), loss_of(loss)
    kept = {**of_dataset(dataset), **(attributes or {})}
    network.eval()
    check_outputs(network, dataset)
    batches = dataset.batches(batch_size)
    mine = batches if group is None else shard_data(batches, group)
    writes = group is None or dist.get_rank(group) == 0
    costs = {name: MATRICES[name].tangent / MATRICES["Hessian"].tangent for name in names}
    total = None if steps == "auto" else steps * probes * sum(costs.values())
    meter = Meter(on_progress, total)
    for_products, for_basis = (None, None) if memory is None else shares_of(memory)
    spectra: dict[str, Spectrum] = {}
    for name in names:
        on_step = meter.of_steps(name, costs[name])
        file = spectrum_file(name, dataset.split, named(prefix, kept))
        running = None if snapshot is None else Path(snapshot) / Path(file).stem
        operator = operator_class(name)(
            network, function, mine, params, memory=for_products, graphs=graphs, group=group
        )
        measured = spectrum(
            operator,
            steps=steps,
            probes=probes,
            seed=seed,
            trace=trace,
            memory=for_basis,
            basis=basis,
            offload=offload,
            on_step=on_step,
            snapshot=running,
            every=every,
        )
        spectra[name] = replace(measured, attributes={**measured.attributes, **kept})
        if folder is not None and writes:
            save_result(spectra[name], Path(folder) / file, overwrite=overwrite)
        if running is not None and writes:
            remove_snapshot(running)
    return spectra


def plan_measurement(
    network: nn.Module,
    dataset: Dataset,
    *,
    matrices: Sequence[str] = DEFAULT_MATRICES,
    params: ParameterSpec = None,
    steps: int | None = None,
    probes: int | None = None,
    accuracy: float | None = None,
    loss: str = CROSS_ENTROPY,
    batch_size: int = 256,
    memory: str | int | None = None,
    basis: str = "auto",
    offload: str | None = None,
    devices: int = 1,
) -> dict[str, Plan]:
    """Plan `measure`, with its arguments and those of `hesspec.plan`; plans by names in `hesspec.matrices.MATRICES`.

    Examples
    --------
    >>> from hesspec.study import load_dataset, small_cnn
    >>> digits = load_dataset("digits", "test", samples_per_class=2)
    >>> plan_measurement(small_cnn(1, 10, 8), digits, matrices=["g"], steps=12)["GaussNewton"].matvecs
    13
    """
    names, function = matrix_names(matrices), loss_of(loss)
    network.eval()
    check_outputs(network, dataset)
    batches = dataset.batches(batch_size)
    return {
        name: plan(
            operator_class(name)(network, function, batches, params),
            steps=steps,
            probes=probes,
            accuracy=accuracy,
            memory=memory,
            basis=basis,
            offload=offload,
            devices=devices,
        )
        for name in names
    }


def measure_structure(
    network: nn.Module,
    dataset: Dataset,
    *,
    matrices: Sequence[str] = DEFAULT_MATRICES,
    params: ParameterSpec = None,
    classes: int = FREQUENT,
    cross: bool = True,
    steps: int = 64,
    seed: int = 0,
    batch_size: int = 256,
    memory: str | int | None = None,
    attributes: Mapping[str, Attribute] | None = None,
    folder: str | os.PathLike[str] | None = None,
    prefix: str = "",
    overwrite: bool = True,
    on_progress: Progress | None = None,
    group: dist.ProcessGroup | None = None,
) -> ClassStructure:
    """Measure the class structure of G for a network on a data set; see `hesspec.class_structure`.

    Parameters
    ----------
    network, dataset, params, batch_size, attributes, prefix, overwrite, group
        See `measure`.
    folder : path, optional
        Folder in which the structure is saved, with the name from `spectrum_file` for "ClassStructure", and the spectra
        of the matrices, unless they exist.
    matrices
        Matrices whose outliers are attributed, named as in `measure`.
    classes : int
        Of sequences, the number of tokens that are classes of their own, the most frequent targets, with all others as
        one more (see `hesspec.frequent_classes`). Without effect where samples have classes.
    cross, steps, seed, memory, on_progress
        See `hesspec.class_structure`.

    Returns
    -------
    ClassStructure

    Raises
    ------
    ValueError, NonFiniteError, MemoryError, OSError
        See `measure`; ValueError also if a class has no samples.

    Examples
    --------
    >>> from hesspec.study import load_dataset, small_cnn
    >>> digits = load_dataset("digits", "test", samples_per_class=2)
    >>> found = measure_structure(small_cnn(1, 10, 8), digits, matrices=["hess"], steps=12)
    >>> found.classes, found.gram.shape
    (10, (110, 110))
    """
    names = matrix_names(matrices)
    network.eval()
    outputs = check_outputs(network, dataset)
    kept = {**of_dataset(dataset), **(attributes or {})}
    checkpoint = named(prefix, kept)
    batches, writes = dataset.batches(batch_size), group is None or dist.get_rank(group) == 0

    def save(name: str, measured: Spectrum) -> None:
        file = Path(folder or "") / spectrum_file(name, dataset.split, checkpoint)
        if folder is not None and writes:
            with contextlib.suppress(FileExistsError):
                replace(measured, attributes={**measured.attributes, **kept}).save(file, overwrite=False)

    groups = None
    if dataset.is_sequences:
        groups = frequent_classes(batches, outputs, classes)
        own = torch.argsort(groups, stable=True)[:classes].tolist()
        kept["tokens"] = json.dumps([dataset.class_names[token] for token in own])
    found = class_structure(
        network,
        LOSSES[CROSS_ENTROPY],
        batches if group is None else shard_data(batches, group),
        params,
        classes=groups,
        matrices=names,
        cross=cross,
        steps=steps,
        seed=seed,
        memory=memory,
        on_spectrum=save,
        on_progress=on_progress,
        group=group,
    )
    found = replace(found, attributes={**found.attributes, **kept})
    if folder is not None and writes:
        save_result(
            found, Path(folder) / spectrum_file("ClassStructure", dataset.split, checkpoint), overwrite=overwrite
        )
    return found


def save_result(result: Record, file: Path, *, overwrite: bool) -> None:
    """Save a result under its name or, if another process has taken it meanwhile, under a free name."""
    try:
        result.save(file, overwrite=overwrite)
    except FileExistsError as error:
        for number in itertools.count(2):
            other = file.with_stem(f"{file.stem}-{number}")
            with contextlib.suppress(FileExistsError):
                result.save(other, overwrite=False)
                break
        raise FileExistsError(
            f"The file {str(file)!r} was written by another process meanwhile, and was not replaced. The "
            f"result of this one was saved to {str(other)!r}."
        ) from error


def check_outputs(network: nn.Module, dataset: Dataset) -> int:
    """Reject a network with invalid outputs, whose cross-entropy would be wrong or fail with an obscure error.

    Parameters
    ----------
    network : torch.nn.Module
        In evaluation mode; one sample goes through it.
    dataset : Dataset

    Returns
    -------
    int
        Number of logits for a sample or a position.

    Raises
    ------
    ValueError
        If it has no parameters, or its output is not one number for each class.
    """
    parameter = next(network.parameters(), None)
    if parameter is None:
        raise ValueError("The network has no parameters.")
    inputs = dataset.inputs[:1].to(parameter.device)
    if inputs.is_floating_point():
        inputs = inputs.to(parameter.dtype)
    with torch.no_grad():
        outputs = _outputs(network, inputs, dataset)
    shape = tuple(outputs.shape) if isinstance(outputs, Tensor) else ()
    if not dataset.has_outputs(shape, 1):
        seen = f"has shape {shape}" if isinstance(outputs, Tensor) else f"is a {type(outputs).__name__}"
        raise ValueError(
            f"The network's output for one sample of {dataset.name!r} {seen}, but it must be {dataset.outputs_text(1)}."
        )
    return shape[1]


def _outputs(network: nn.Module, inputs: Tensor, dataset: Dataset) -> Any:
    if not dataset.is_sequences:
        return network(inputs)
    try:
        return network(inputs)
    except (RuntimeError, TypeError, IndexError, AttributeError) as error:
        raise ValueError(
            f"The network cannot take a sequence of {dataset.name!r}, an input of {inputs.dtype} of shape "
            f"{tuple(inputs.shape)}: {str(error).strip().splitlines()[0].rstrip('.')}. Networks for text are gpt_tiny, "
            "gpt_small and those of transformers."
        ) from error


def of_dataset(dataset: Dataset) -> dict[str, Attribute]:
    """Attributes of results that say what they were measured on."""
    if dataset.is_sequences:
        of_text = {"sequences": len(dataset), "positions": dataset.size, "vocabulary": dataset.classes}
        return {"dataset": dataset.name, "split": dataset.split, **of_text}
    counts = torch.bincount(dataset.targets, minlength=dataset.classes)
    balanced = {"samples_per_class": int(counts[0])} if bool((counts == counts[0]).all()) else {}
    return {"dataset": dataset.name, "split": dataset.split, "classes": dataset.classes, **balanced}
