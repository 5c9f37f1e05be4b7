"""Measurement inside the user's own training loop."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, Literal

from torch import nn

from hesspec.matrices import matrix_names
from hesspec.measure.spectrum import spectrum
from hesspec.operators.base import CurvatureOperator
from hesspec.operators.model.module import evaluation_mode
from hesspec.operators.named import operator_class
from hesspec.operators.risk.losses import LossFunction
from hesspec.operators.risk.parameters import ParameterSpec
from hesspec.spectra.spectrum import Spectrum
from hesspec.study.measuring import Attribute, spectrum_file

__all__ = ["SpectrumRecorder"]

# Attribute of a spectrum: everything that it depends on, as JSON.
IDENTITY: Final = "identity"


class SpectrumRecorder:
    """Measures a model's curvature during any training loop.

    Call it with the model and the epoch (or step), anywhere in the loop. The model is measured in evaluation mode and
    left unchanged: weights, modes of all modules, gradients, and torch's random generators.

    Existing spectra are not measured again, so a loop that is restarted only measures what is missing. An existing
    spectrum of anything else, such as other weights, loss, data, parameters, steps or seed, is neither used nor
    replaced, but raises an error: use a separate folder for each training.

    Parameters
    ----------
    folder : path
        Folder for spectra, with names `epoch-EPOCH-SPLIT-MATRIX.nc`. `hesspec report FOLDER` shows them.
    loss_fn : callable
        See `hesspec.Hessian`.
    data : mapping of str to iterable
        Data sets by split, such as {"train": loader, "test": loader}, without augmentation or shuffling (see
        `hesspec.Hessian`).
    matrices : sequence of str
        Names of matrices, such as "hessian", "g", "h".
    at : collection of int, optional
        Epochs at which to measure. By default all.
    steps, probes, seed
        See `hesspec.spectrum`.
    params, memory : optional
        See `hesspec.Hessian`.
    progress : bool
        See `hesspec.spectrum`.
    attributes : mapping, optional
        Attributes to store with the spectra, such as {"network": "my net", "dataset": "my data"}.

    Examples
    --------
    >>> import tempfile, torch, hesspec
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3))
    >>> batches = [(torch.randn(20, 4), torch.randint(3, (20,)))]
    >>> folder = tempfile.mkdtemp()
    >>> record = SpectrumRecorder(folder, torch.nn.CrossEntropyLoss(), {"train": batches}, ["hessian"], steps=10)
    >>> for epoch in range(2):
    ...     found = record(model, epoch)  # and the training of an epoch
    >>> sorted(found), found["train", "Hessian"].matvecs
    ([('train', 'Hessian')], 11)
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        loss_fn: LossFunction,
        data: Mapping[str, Iterable[Any]],
        matrices: Sequence[str] = ("Hessian",),
        *,
        at: Collection[int] | None = None,
        steps: int | Literal["auto"] = 64,
        probes: int = 1,
        seed: int = 0,
        params: ParameterSpec = None,
        memory: str | int | None = None,
        attributes: Mapping[str, Attribute] | None = None,
        progress: bool = True,
    ) -> None:
        if not data:
            raise ValueError("There is no data to measure on: the mapping is empty. Pass {'train': batches}.")
        self._folder, self._loss, self._data = Path(folder), loss_fn, dict(data)
        self._names = matrix_names(matrices)
        self._at = None if at is None else set(at)
        self._how: dict[str, Any] = {"steps": steps, "probes": probes, "seed": seed}
        self._progress = progress
        self._params, self._memory, self._attributes = params, memory, dict(attributes or {})

    def __call__(self, model: nn.Module, epoch: int) -> dict[tuple[str, str], Spectrum]:
        """Measure what has not been measured at this epoch.

        Parameters
        ----------
        model : torch.nn.Module
        epoch : int

        Returns
        -------
        dict of (str, str) to Spectrum
            Newly measured spectra, by split and matrix.

        Raises
        ------
        ValueError
            If the folder has a spectrum of this name for something else; the message states the difference.
        FileExistsError
            If another process writes a spectrum of this name meanwhile.
        ValueError, NonFiniteError, MemoryError, OSError
            See `hesspec.spectrum`; the model is left unchanged.
        """
        found: dict[tuple[str, str], Spectrum] = {}
        if self._at is not None and epoch not in self._at:
            return found
        with evaluation_mode(model):
            for split, data in self._data.items():
                for name in self._names:
                    file = self._folder / spectrum_file(name, split, f"epoch-{epoch:04}")
                    operator = operator_class(name)(model, self._loss, data, self._params, memory=self._memory)
                    of = self._identity(operator)
                    if file.exists():
                        _refuse_another(file, of)
                        continue
                    measured = spectrum(operator, **self._how, progress=self._progress)
                    kept = {**measured.attributes, "split": split, "epoch": epoch, IDENTITY: json.dumps(of)}
                    kept |= self._attributes
                    found[split, name] = replace(measured, attributes=kept)
                    found[split, name].save(file, overwrite=False)
        return found

    def _identity(self, operator: CurvatureOperator) -> dict[str, str]:
        """Return everything that a spectrum depends on."""
        how = {what: str(value) for what, value in self._how.items()}
        return {"number of parameters": str(operator.shape[0]), **operator.identity(), **how}


def _refuse_another(file: Path, wanted: Mapping[str, str]) -> None:
    """Raise ValueError if the spectrum in a file belongs to something else."""
    try:
        found = dict(json.loads(str(Spectrum.load(file).attributes.get(IDENTITY, "{}"))))
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"The file {str(file)!r} contains something that this recorder did not write: {error}"
        ) from error
    for what, here in wanted.items():
        there = found.get(what, "not known")
        if there != here:
            raise ValueError(
                f"The spectrum in {str(file)!r} belongs to another measurement: its {what} is {there}, but here it is "
                f"{here}. Use another folder, or delete the file."
            )
