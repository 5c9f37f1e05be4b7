"""Measurement inside the user's own training loop."""

from __future__ import annotations

import json
import logging
import os
import uuid
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

import torch.distributed as dist
from torch import nn

from hesspec.backend.ranks import Ranks
from hesspec.backend.user_warnings import warn
from hesspec.errors import TrackerError
from hesspec.matrices import matrix_names
from hesspec.measure.spectrum import spectrum
from hesspec.operators import CentralDifferenceHessian, shard_data
from hesspec.operators.model.ambient import preserved_randomness
from hesspec.operators.model.module import evaluation_mode
from hesspec.operators.named import operator_class
from hesspec.operators.risk.losses import LossFunction
from hesspec.operators.risk.parameters import ParameterSpec
from hesspec.operators.risk.shards import is_distributed
from hesspec.spectra.spectrum import Spectrum
from hesspec.study.measuring import Attribute, spectrum_file

__all__ = ["SpectrumRecorder"]

logger = logging.getLogger(__name__)

# Attributes of a spectrum: everything that it depends on, as JSON; and the training that it belongs to.
IDENTITY: Final = "identity"
TRAINING: Final = "training_id"
WEIGHTS: Final = "weights"


class Place(NamedTuple):
    """When a model is measured, and on what."""

    epoch: int | float
    step: int | None
    split: str
    matrix: str

    @property
    def name(self) -> str:
        """Name of the file of its spectrum."""
        when = f"epoch-{self.epoch:04}" if isinstance(self.epoch, int) else f"step-{self.step:08}"
        return spectrum_file(self.matrix, self.split, when)

    @property
    def attributes(self) -> dict[str, Attribute]:
        """Attributes of its spectrum."""
        found: dict[str, Attribute] = {"split": self.split, "epoch": self.epoch}
        if self.step is not None:
            found["step"] = self.step
            if not isinstance(self.epoch, int):
                found["checkpoint"] = f"step {self.step}"
        return found


class SpectrumRecorder:
    """Measures a model's curvature during any training loop.

    Call it with the model and the epoch (or step), anywhere in the loop. The model is measured in evaluation mode and
    left unchanged: weights, modes of all modules, gradients, and torch's random generators.

    Existing spectra are not measured again, so a loop that is restarted only measures what is missing. An existing
    spectrum that was measured with other weights, loss, data, parameters, steps or seed is neither used nor replaced,
    but raises an error: use a separate folder for each training. There is one exception: a loop that resumes
    from a checkpoint, and restores `training_id`, may reach other weights than before at the same epoch. It then
    replaces the earlier spectrum.

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
    group : torch.distributed.ProcessGroup, optional
        Processes that train the model together, such as `torch.distributed.group.WORLD`. All of them call the recorder,
        with the same data, which they share (see `hesspec.shard_data`); rank 0 writes. Of a model that `fully_shard`
        has sharded, only the Hessian can be measured (`hesspec.CentralDifferenceHessian`).

    Attributes
    ----------
    group : torch.distributed.ProcessGroup or None
        As above.
    training_id : str
        Identifier of the training, random by default. A loop that resumes restores it from its checkpoint.

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
        group: dist.ProcessGroup | None = None,
    ) -> None:
        if not data:
            raise ValueError("There is no data to measure on: the mapping is empty. Pass {'train': batches}.")
        self._folder, self._loss, self._data = Path(folder), loss_fn, dict(data)
        self._names = matrix_names(matrices)
        self._at = None if at is None else set(at)
        self._how: dict[str, Any] = {"steps": steps, "probes": probes, "seed": seed}
        self._progress = progress
        self._params, self._memory, self._attributes = params, memory, dict(attributes or {})
        self.group = group
        self.training_id = uuid.uuid4().hex
        # Files that this object wrote, and those of the same training, before it resumed, that it replaces.
        self._written: set[Place] = set()
        self._superseded: set[Place] = set()

    def __call__(
        self, model: nn.Module, epoch: int | float, *, step: int | None = None, log_to: Any = None
    ) -> dict[tuple[str, str], Spectrum]:
        """Measure what has not been measured at this epoch.

        Parameters
        ----------
        model : torch.nn.Module
        epoch : int or float
            Number of completed epochs. For a float, an epoch that is not complete, files are named by the step.
        step : int, optional
            Number of completed training steps, stored with the spectra.
        log_to : object, optional
            Where to log the spectra of this epoch, including those that existed, at `step` if it is given and at
            `epoch` otherwise; see `Spectrum.log_to`. If a tracker cannot store a spectrum, as on a full disk, a
            warning says so and the training continues: the spectrum is in its file.

        Returns
        -------
        dict of (str, str) to Spectrum
            Newly measured spectra, by split and matrix.

        Raises
        ------
        ValueError
            If the folder has a spectrum of this name for something else; the message states the difference. If the
            epoch is not complete and there is no step.
        FileExistsError
            If another process writes a spectrum of this name at the same time.
        ValueError, NonFiniteError, MemoryError, OSError
            See `hesspec.spectrum`; the model is left unchanged.
        RankError
            If another rank failed.
        """
        found: dict[tuple[str, str], Spectrum] = {}
        if self._at is not None and epoch not in self._at:
            return found
        if not isinstance(epoch, int) and step is None:
            raise ValueError(f"The epoch is {epoch!r}, which is not complete; give the number of steps with step=.")
        for place, measured, new in self._measured(model, epoch, step):
            if log_to is not None and measured is not None:
                self._log(place, measured, log_to)
            if new and measured is not None:
                found[place.split, place.matrix] = measured
        return found

    def _measured(
        self, model: nn.Module, epoch: int | float, step: int | None
    ) -> Iterator[tuple[Place, Spectrum | None, bool]]:
        """Yield the spectra of all data sets and matrices, and whether they are new.

        Of ranks that share the data, only the first one reads spectra that exist; the others yield None.
        """
        ranks = Ranks(self.group)
        for split, data in self._data.items():
            mine = data if self.group is None else shard_data(data, self.group)
            for name in self._names:
                place = Place(epoch, step, split, name)
                with evaluation_mode(model), preserved_randomness():
                    operator = self._operator(name, model, mine)
                    of = self._identity(operator)
                    kept = ranks.together(lambda: self._kept(place, of) if ranks.rank == 0 else None)  # noqa: B023
                    if ranks.gather(kept is not None)[0]:
                        yield place, kept, False
                        continue
                    measured = spectrum(operator, **self._how, progress=self._progress and ranks.rank == 0)
                own = {**place.attributes, IDENTITY: json.dumps(of), TRAINING: self.training_id, **self._attributes}
                measured = replace(measured, attributes={**measured.attributes, **own})
                ranks.together(lambda: self._save(place, measured) if ranks.rank == 0 else None)  # noqa: B023
                yield place, measured, True

    def _log(self, place: Place, measured: Spectrum, log_to: Any) -> None:
        """Log a spectrum that is in its file already, so that an error of a tracker loses nothing."""
        try:
            measured.log_to(log_to, step=int(place.epoch) if place.step is None else place.step)
        except TrackerError as error:
            warn(
                f"{error}. The training continues, and the spectrum is in {str(self._folder / place.name)!r}: log it "
                "with hesspec.load(...).log_to(...)."
            )

    def _operator(self, name: str, model: nn.Module, data: Iterable[Any]) -> Any:
        if not any(map(is_distributed, model.parameters())):
            options: dict[str, Any] = {"memory": self._memory, "group": self.group}
            return operator_class(name)(model, self._loss, data, self._params, **options)
        if name != "Hessian":
            raise ValueError(
                f"The {name} of a sharded model cannot be measured, as PyTorch has no second derivatives through "
                "fully_shard; measure the Hessian only."
            )
        return CentralDifferenceHessian(model, self._loss, data, self._params)

    def _identity(self, operator: Any) -> dict[str, str]:
        """Return everything that a spectrum depends on."""
        how = {what: str(value) for what, value in self._how.items()}
        return {"number of parameters": str(operator.shape[0]), **operator.identity(), **how}

    def _kept(self, place: Place, wanted: Mapping[str, str]) -> Spectrum | None:
        """Read the spectrum of a place if it exists; None if it does not, or is to be replaced.

        Raises
        ------
        ValueError
            If it belongs to something else.
        """
        file = self._folder / place.name
        if not file.exists():
            return None
        try:
            kept = Spectrum.load(file)
            found = dict(json.loads(str(kept.attributes.get(IDENTITY, "{}"))))
        except (ValueError, TypeError) as error:
            raise ValueError(
                f"The file {str(file)!r} contains something that this recorder did not write: {error}"
            ) from error
        differing = [what for what, here in wanted.items() if found.get(what, "not known") != here]
        if not differing:
            return kept
        mine = kept.attributes.get(TRAINING) == self.training_id and place not in self._written
        if differing == [WEIGHTS] and mine:
            self._superseded.add(place)
            logger.info("%s is replaced: the training has resumed, and come to other weights", file)
            return None
        what = differing[0]
        raise ValueError(
            f"The spectrum in {str(file)!r} belongs to another measurement: its {what} is "
            f"{found.get(what, 'not known')}, but here it is {wanted[what]}. Use another folder, or delete the file."
        )

    def _save(self, place: Place, measured: Spectrum) -> None:
        # Any other file of this name was written by another process meanwhile.
        measured.save(self._folder / place.name, overwrite=place in self._superseded)
        self._written.add(place)
