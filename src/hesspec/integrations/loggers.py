"""Spectra in experiment trackers: TensorBoard, Weights & Biases, MLflow, Lightning's loggers, Accelerate's trackers."""

from __future__ import annotations

import contextlib
import io
import sys
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt
from PIL import Image

from hesspec.backend.numbers import is_whole
from hesspec.backend.text import kind_of
from hesspec.errors import TrackerError
from hesspec.spectra.numbers import numbers_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from hesspec.spectra.spectrum import Spectrum

__all__ = ["log_spectrum"]

Array = npt.NDArray[np.float64]
Log = Callable[["Spectrum", int | None, str], None]

# Numbers that are the same at every step.
CONSTANT: Final = ("parameters", "steps", "probes", "exact")
# Bins of the histograms: TensorBoard draws at most 30 of its own, and W&B stores at most 512.
BINS: Final = 64
DPI: Final = 100  # of pictures in W&B
SUPPORTED: Final = (
    "a TensorBoard SummaryWriter, a W&B run, an MLflow run, a logger of Lightning, an Accelerator, or a list of them"
)


def log_spectrum(writer: Any, spectrum: Spectrum, *, step: int | None = None, name: str | None = None) -> None:
    """Write a spectrum to an experiment tracker; `Spectrum.log_to` documents it.

    Parameters
    ----------
    writer : object
    spectrum : Spectrum
    step : int, optional
    name : str, optional

    Raises
    ------
    ValueError
        If the writer is of another kind, or the step is negative.
    TrackerError
        If a tracker raises an error, after the others have the spectrum.
    """
    if step is not None and not is_whole(step, 0):
        raise ValueError(f"step is {step!r}; it must be a nonnegative integer.")
    name = _name_of(spectrum) if name is None else name
    failed: list[tuple[str, Exception]] = []
    for tracker, log in list(_logs(writer)):
        try:
            log(spectrum, None if step is None else int(step), name)
        except Exception as error:  # noqa: BLE001 - trackers of others raise anything
            failed.append((tracker, error))
    if failed:
        words = "; ".join(f"{tracker}: {type(error).__name__}: {error}" for tracker, error in failed)
        at = "" if step is None else f" of step {step}"
        raise TrackerError(f"The spectrum {name!r}{at} was not logged to {words}") from failed[0][1]


def _name_of(spectrum: Spectrum) -> str:
    """Return "hesspec/SPLIT/MATRIX", without the split if it is not known."""
    parts = (spectrum.attributes.get("split", ""), spectrum.attributes.get("matrix", "operator"))
    return "/".join(["hesspec", *(str(part) for part in parts if part)])


def _logs(writer: Any) -> Iterator[tuple[str, Log]]:
    """Names of trackers and functions that log to them; several for a writer that has others."""
    if isinstance(writer, list | tuple):
        for each in writer:
            yield from _logs(each)
    elif all(hasattr(writer, method) for method in ("add_scalar", "add_figure", "add_histogram_raw")):
        yield type(writer).__name__, lambda *what: _to_tensorboard(writer, *what)
    elif _is(writer, "wandb.sdk.wandb_run", "Run"):
        yield "W&B", lambda *what: _to_wandb(writer, *what)
    elif _is(writer, "mlflow.entities", "Run"):
        yield "MLflow", lambda *what: _to_mlflow(sys.modules["mlflow"].MlflowClient(), writer.info.run_id, *what)
    elif _is(writer, "accelerate", "Accelerator"):
        for tracker in writer.trackers:
            yield from _logs(tracker.tracker)
    elif _is_of_lightning(writer):
        yield from _of_lightning(writer)
    else:
        raise ValueError(
            f"A spectrum cannot be written to {kind_of(writer)}: pass {SUPPORTED}. An MlflowClient does not "
            "know its run: pass the run."
        )


def _is(writer: Any, module: str, name: str) -> bool:
    """Whether an object is of a class of a library, which has been imported if it is."""
    found = getattr(sys.modules.get(module), name, None)
    return found is not None and isinstance(writer, found)


def _is_of_lightning(writer: Any) -> bool:
    modules = ("lightning.pytorch.loggers", "lightning.fabric.loggers", "pytorch_lightning.loggers")
    return any(_is(writer, module, "Logger") for module in modules)


def _of_lightning(logger: Any) -> Iterator[tuple[str, Log]]:
    kind = type(logger).__name__
    if kind == "TensorBoardLogger":
        yield from _logs(logger.experiment)
    elif kind == "WandbLogger":
        yield kind, lambda *what: _to_wandb(logger.experiment, *what, axis="trainer/global_step")
    elif kind == "MLFlowLogger":
        yield kind, lambda *what: _to_mlflow(logger.experiment, logger.run_id, *what)
    else:
        # CSVLogger and loggers of others have numbers only in common.
        yield kind, lambda spectrum, step, name: logger.log_metrics(_scalars(spectrum, name), step=step)


def _scalars(spectrum: Spectrum, name: str) -> dict[str, float]:
    """Numbers of the spectrum that are known, by their names in the tracker."""
    numbers = numbers_of(spectrum)
    return {
        f"{name}/{key}": float(value) for key, value in numbers.items() if key not in CONSTANT and value is not None
    }


@contextlib.contextmanager
def _figure(spectrum: Spectrum) -> Iterator[Figure]:
    figure = spectrum.plot()
    try:
        yield figure
    finally:
        pyplot = sys.modules.get("matplotlib.pyplot")
        if pyplot is not None:
            pyplot.close(figure)


def _histogram(values: Array, weights: Array) -> tuple[Array, Array]:
    """Counts (BINS,) and edges (BINS + 1,) of a weighted histogram over the range of the values."""
    counts, edges = np.histogram(values, bins=BINS, weights=weights)
    return counts, edges


def _histograms(spectrum: Spectrum) -> dict[str, tuple[Array, Array]]:
    """Numbers of eigenvalues, by what they are counted over: the eigenvalue, and log10 of its magnitude.

    The atoms of the measure are counted with their weights. Those that cannot be told from zero are left out of the
    second.
    """
    nodes, counts = spectrum.nodes, spectrum.weights * spectrum.dimension
    found = {"eigenvalues": _histogram(nodes, counts)}
    known = np.abs(nodes) > spectrum.rounding
    if known.any():
        found["log10_magnitudes"] = _histogram(np.log10(np.abs(nodes[known])), counts[known])
    return found


def _to_tensorboard(writer: Any, spectrum: Spectrum, step: int | None, name: str) -> None:
    for key, value in _scalars(spectrum, name).items():
        writer.add_scalar(key, value, step)
    for key, (counts, edges) in _histograms(spectrum).items():
        # TensorBoard's own summaries of the values are those of the bins' centres.
        centres = (edges[1:] + edges[:-1]) / 2
        writer.add_histogram_raw(
            f"{name}/{key}",
            min=float(edges[0]),
            max=float(edges[-1]),
            num=float(counts.sum()),
            sum=float(counts @ centres),
            sum_squares=float(counts @ centres**2),
            bucket_limits=edges[1:].tolist(),
            bucket_counts=counts.tolist(),
            global_step=step,
        )
    with _figure(spectrum) as figure:
        writer.add_figure(f"{name}/spectrum", figure, step, close=False)


def _to_wandb(run: Any, spectrum: Spectrum, step: int | None, name: str, *, axis: str | None = None) -> None:
    """Log one row to a W&B run.

    W&B drops, with a warning, rows of a step that is below the run's own, as a count of epochs is below that of steps.
    The given step is therefore a column of its own, which its charts use as their axis.
    """
    import wandb  # noqa: PLC0415 - an optional dependency, imported already if there is a run

    row: dict[str, Any] = {**_scalars(spectrum, name)}
    for key, (counts, edges) in _histograms(spectrum).items():
        row[f"{name}/{key}"] = wandb.Histogram(np_histogram=(counts.tolist(), edges.tolist()))
    with _figure(spectrum) as figure:
        # W&B knows figures of matplotlib by the name of their class, and this is a subclass.
        picture = io.BytesIO()
        figure.savefig(picture, format="png", dpi=DPI)
    with Image.open(picture) as image:
        row[f"{name}/spectrum"] = wandb.Image(image)
    own = f"{name}/step" if axis is None else axis
    if step is not None:
        row[own] = step
        if axis is None:
            run.define_metric(f"{name}/*", step_metric=own)
    ahead = step is not None and axis is None and step >= run.step
    run.log(row, step=step if ahead else None)


def _to_mlflow(client: Any, run_id: str, spectrum: Spectrum, step: int | None, name: str) -> None:
    from mlflow.entities import Metric  # noqa: PLC0415 - an optional dependency, imported already if there is a run

    now, at = int(time.time() * 1000), step or 0
    client.log_batch(run_id, metrics=[Metric(key, value, now, at) for key, value in _scalars(spectrum, name).items()])
    # MLflow has no histograms; artifacts of its runs have names instead of steps.
    with _figure(spectrum) as figure:
        client.log_figure(run_id, figure, f"{name}/spectrum-{at:08}.png")
