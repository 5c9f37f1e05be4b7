"""One case: hesspec's products, what they take, the truth, and what hesspec left behind."""

from __future__ import annotations

import gc
import statistics
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import hesspec
from _turns import in_turn
from hesspec.operators.engine import passes
from sweep.double import double_data, double_module, in_double, twice_differentiable
from sweep.plain import PlainLoss
from sweep.truth import NoTruthError, Truth, establish
from sweep.untouched import changes, photograph, unexplained
from zoo.case import Case, Example

__all__ = ["MATRICES", "Record", "measure", "measure_times"]

Record = dict[str, Any]

MATRICES = ("Hessian", "GaussNewton", "Residual")
PACKAGE = str(Path(hesspec.__file__).parent)
# Relative deviation above which plain double backward computes something else, and is not compared with in time.
OTHER_MATRIX = 1e-2
# Later products are made in at least so many turns, and for so many seconds.
TURNS, SECONDS = 5, 1.0
# CPU seconds of a case after which no further matrix is measured with a trace forced on it.
FORCED_UNTIL = 12.0


@contextmanager
def forced_traces() -> Iterator[None]:
    """Let hesspec trace whatever it can, whether that pays or not."""
    before = passes.trace_pays
    passes.trace_pays = lambda *_, **__: (True, "forced")
    try:
        yield
    finally:
        passes.trace_pays = before


def stated_error(operator: Any) -> float:
    """What an operator says that its products are off by, relative to their norm; 0 if it says that they are exact."""
    return float(operator.attributes.get("product_error", 0.0))


def measure(case: Case, save: Callable[[Record], None], printed: Path) -> None:
    """Measure a case.

    Parameters
    ----------
    case : Case
    save : callable
        Given the record, the same one each time, whenever there is more of it.
    printed : Path
        File that standard output and error go to.
    """
    started = time.process_time()
    record: Record = {"name": case.name, "family": case.family, "sentence": case.sentence, "stage": "build"}
    record["unsplit"] = case.unsplit

    def stage(name: str) -> None:
        record["stage"], record["seconds"] = name, round(time.process_time() - started, 2)
        save(record)

    stage("build")
    try:
        example = case.example()
    except Exception:  # noqa: BLE001 - any failure to build is told
        record["build_error"] = traceback.format_exc()
        stage("done")
        return
    trainable = [p for p in example.model.parameters() if p.requires_grad]
    if not any(isinstance(p, torch.nn.parameter.UninitializedTensorMixin) for p in trainable):
        record["parameters"] = sum(p.numel() * (2 if p.is_complex() else 1) for p in trainable)
    runs = _Runs(example, record, printed)
    stage("products")
    for matrix in MATRICES:
        record.setdefault("chosen", {})[matrix] = runs.first(matrix)
        stage("products")
    stage("truth")
    truth = _truth(case, record, runs.vector)
    _compare(record.get("chosen", {}), runs.products, truth)
    stage("later products")
    _time(case, record, runs, truth)
    runs.operators.clear()
    gc.collect()
    stage("forced traces")
    if record["chosen"]["Hessian"].get("mode", "traced") != "traced":
        with forced_traces():
            for matrix in MATRICES:
                if time.process_time() - started > FORCED_UNTIL:
                    break
                forced = runs.first(matrix)
                record.setdefault("forced", {})[matrix] = forced
                _compare({matrix: forced}, runs.products, truth)
                stage("forced traces")
                if forced.get("mode", "traced") != "traced":
                    break
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        record["touched"] = runs.left_behind(case)[:20]
    stage("done")


def measure_times(case: Case, save: Callable[[Record], None], printed: Path) -> None:
    """Measure the times of a case alone: of first and later products with the Hessian. Arguments as of `measure`."""
    started = time.process_time()
    example = case.example()
    record: Record = {"name": case.name, "family": case.family, "times_only": True}
    runs = _Runs(example, record, printed)
    record["chosen"] = {"Hessian": runs.first("Hessian")}
    if runs.operators:
        _time(case, record, runs, None)
    record["seconds"] = round(time.process_time() - started, 2)
    save(record)


class _Runs:
    """First products of the matrices of one example with one vector."""

    def __init__(self, example: Example, record: Record, printed: Path) -> None:
        self._example, self._record, self._printed = example, record, printed
        self.vector: Tensor | None = None
        self.operators: dict[str, Any] = {}
        self.products: dict[str, Tensor] = {}
        self.changed: dict[str, tuple[Any, str]] = {}

    def _picture(self) -> dict[str, Any]:
        example = self._example
        return photograph(model=example.model, loss=example.loss, data=example.data, options=example.options)

    @property
    def surroundings(self) -> Callable[[], Any]:
        """Context in which hesspec is called."""
        return self._example.surroundings or nullcontext

    def first(self, matrix: str) -> Record:
        """Build an operator and multiply with it once."""
        example, result = self._example, {}
        self.products.pop(matrix, None)
        said, before = self._printed.stat().st_size, self._picture()
        started = time.process_time()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                with self.surroundings():
                    operator = getattr(hesspec, matrix)(example.model, example.loss, example.data, **example.options)
                    if self.vector is None:
                        self.vector = _unit(operator.shape[0], 3)
                        self._record["parameters"] = operator.shape[0]
                    self.products[matrix] = operator @ self.vector
            except Exception as error:  # noqa: BLE001 - any failure is told
                result["error"] = _told(error)
            result["first"] = round(time.process_time() - started, 4)
            if "error" not in result:
                self.operators[matrix] = operator
                attributes = operator.attributes
                result["mode"], result["reason"] = attributes["mode"], attributes["mode_reason"]
                result["stated"] = stated_error(operator)
        result["warnings"] = list(dict.fromkeys(f"{w.category.__name__}: {str(w.message)[:300]}" for w in caught))[:8]
        self.changed = {**changes(before, self._picture()), **self.changed}
        if self._printed.stat().st_size > said:
            result["printed"] = self._printed.read_text(errors="replace")[said:][:2000]
        return result

    def left_behind(self, case: Case) -> list[str]:
        """Sentences on what products changed, but for what one forward pass of the model changes by itself."""
        found = []
        if self.changed:
            alone = case.example()
            loss = PlainLoss(alone)
            for batch in loss.batches:
                loss.outputs(batch)
            once = photograph(model=alone.model, loss=alone.loss, data=alone.data, options=alone.options)
            found = unexplained(self.changed, once)
        return found + (self._example.leaves_behind() if self._example.leaves_behind else [])


def _told(error: Exception) -> Record:
    frames = traceback.extract_tb(error.__traceback__)
    return {
        "type": type(error).__name__,
        "text": str(error).strip()[:1500],
        # An error that a statement of hesspec raised is a sentence of ours, any other is somebody else's.
        "ours": _raised_here(frames),
        "where": "; ".join(f"{Path(f.filename).name}:{f.lineno} {f.name}" for f in frames[-4:]),
    }


def _raised_here(frames: traceback.StackSummary) -> bool:
    last = frames[-1]
    return last.filename.startswith(PACKAGE) and (last.line or "").strip().startswith("raise")


def _unit(size: int, seed: int) -> Tensor:
    vector = torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (vector / vector.norm()).float()


def _doubled(case: Case) -> PlainLoss:
    example = case.example()
    for module in (example.model, example.loss):
        if isinstance(module, torch.nn.Module):
            double_module(module)
    example.batches = double_data(list(example.data) if example.batches is None else example.batches)
    example.options = {}
    return PlainLoss(example)


def _truth(case: Case, record: Record, vector: Tensor | None) -> Truth | None:
    """The truth, with its account in the record; None where there is none to compare with."""
    if case.sentence:
        return None
    account: Record = {}
    record["truth"] = account
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # An example is built as its author wrote it, in float32, and turned into float64 afterwards.
            loss = _doubled(case)
            record.setdefault("parameters", loss.size)
            vector = _unit(loss.size, 3) if vector is None else vector
            assert len(vector) == loss.size, f"hesspec differentiates by {len(vector)}, the truth by {loss.size}"
            with in_double():
                truth = establish(loss, vector.double(), _unit(loss.size, 4).double())
    except (NoTruthError, AssertionError) as error:
        account["error"] = str(error)
        return None
    except Exception:  # noqa: BLE001 - told, as a fault of the case
        account["error"] = traceback.format_exc()[-2000:]
        return None
    account.update(way=truth.way, constants=truth.constants, exists=truth.exists, notes=truth.notes)
    account["norms"] = [float(part.norm()) for part in (truth.hessian, truth.gauss_newton, truth.residual)]
    return truth


def _deviation(product: Tensor, true: Tensor, scale: float) -> float:
    distance = float((product.double() - true).norm())
    return distance / scale if scale else distance


def _compare(results: Record, products: dict[str, Tensor], truth: Truth | None) -> None:
    if truth is None or not truth.exists:
        return
    truths = [truth] if truth.other is None else [truth, truth.other]
    for matrix, result in results.items():
        if matrix in products:
            found = [_deviation(products[matrix], each.of(matrix), each.scale) for each in truths]
            result["deviation"] = min(found)
            result["zero"] = not bool(products[matrix].any())


def _time(case: Case, record: Record, runs: _Runs, truth: Truth | None) -> None:
    """Seconds of later products, in turn with those of a plain retained graph in float32, and their ratios."""
    vector = runs.vector

    def multiply(operator: Any) -> None:
        with runs.surroundings():
            operator @ vector

    todo: dict[str, Callable[[], Any]] = {
        matrix: partial(multiply, operator) for matrix, operator in runs.operators.items()
    }
    if not case.sentence and vector is not None:
        plain: Record = {}
        record["plain"] = plain
        with warnings.catch_warnings(), twice_differentiable():
            warnings.simplefilter("ignore")
            try:
                started = time.process_time()
                loss = PlainLoss(case.example())
                product = loss.retained()
                result = product(vector)
                plain["first"] = round(time.process_time() - started, 4)
                if truth is not None:
                    plain["deviation"] = _deviation(result, truth.hessian, truth.scale)
                found = runs.products["Hessian"].double() if "Hessian" in runs.products else None
                if found is None or _deviation(result, found, float(found.norm())) <= OTHER_MATRIX:
                    todo["plain"] = lambda: product(vector)
                else:
                    plain["error"] = "it multiplies with another matrix"
            except Exception as error:  # noqa: BLE001 - told
                plain["error"] = f"{type(error).__name__}: {str(error).strip()[:200]}"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        taken = in_turn(todo, TURNS, SECONDS)
    for name, seconds in taken.items():
        (record["plain"] if name == "plain" else record["chosen"][name])["later"] = statistics.median(seconds)
    for matrix in runs.operators:
        if "plain" in taken:
            ratios = (theirs / ours for theirs, ours in zip(taken["plain"], taken[matrix], strict=True))
            record["chosen"][matrix]["times"] = statistics.median(ratios)
