"""Seconds of traces, and those that they save, predicted and measured on the networks of `zoo/`.

    python benchmarks/trace_cost.py [--every N] [--only PATTERN]

One thread, Hessians, CPU seconds. Prints a line for each network that can be traced, and at the end by which factor
predicted and measured differ. `--every 10` takes every tenth network, `--only` those whose name has a match.
"""

from __future__ import annotations

import argparse
import re
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

import hesspec
from _tables import console
from _turns import in_turn
from hesspec.operators.engine import passes
from hesspec.operators.engine.trace_cost import ForwardWork, seconds_saved
from zoo import every_case
from zoo.case import Case

# A trace for the caches of PyTorch comes first. Products: turns, seconds.
WARM_UP, TURNS, SECONDS = "Mixture of experts, top 2 by a mask", 3, 0.1


class Observed:
    """Seconds of the next trace, and the two that are predicted."""

    def __init__(self) -> None:
        self.forced, self.seconds, self.predicted, self.saved = True, 0.0, 0.0, 0.0
        passes.trace_pays = self._recorded
        passes.trace_linear, passes.cut = map(self._timed, (passes.trace_linear, passes.cut))

    def _recorded(self, work: ForwardWork, **how: Any) -> tuple[bool, str]:
        self.seconds, self.predicted = 0.0, how["shapes"] * work.trace_seconds
        self.saved = seconds_saved(work, how["batches"], how["scale"], how["device"])
        return self.forced, "forced"

    def _timed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            started = time.process_time()
            result = function(*args, **kwargs)
            self.seconds += time.process_time() - started
            return result

        return timed


def measured(case: Case, observed: Observed) -> tuple[float, ...] | None:
    """Seconds of a trace, predicted and measured, and what it saves of a product; None if there is no trace."""
    example, multiply = case.example(), {}
    if example.surroundings is not None:
        return None
    for mode in ("double backward", "traced"):
        observed.forced = mode == "traced"
        operator = hesspec.Hessian(example.model, example.loss, example.data, **{**example.options, "verify": False})
        vector = torch.ones(operator.shape[0], dtype=operator.dtype)
        _ = operator @ vector
        if operator.attributes["mode"] != mode:
            return None
        multiply[mode] = lambda operator=operator, vector=vector: operator @ vector
    taken = {mode: float(np.median(seconds)) for mode, seconds in in_turn(multiply, TURNS, SECONDS).items()}
    return observed.predicted, observed.seconds, observed.saved, taken["double backward"] - taken["traced"]


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--every", type=int, default=1, metavar="N", help="every Nth network")
    parser.add_argument("--only", default="", metavar="PATTERN", help="networks whose name has a match")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    cases = [case for case in every_case() if not case.missing and not case.sentence]
    observed, factors = Observed(), []
    measured(next(case for case in cases if case.name == WARM_UP), observed)
    for case in [case for case in cases if re.search(options.only, case.name)][:: options.every]:
        found = measured(case, observed)
        if found is None:
            console.print(f"[dim]{case.name}: not traced")
            continue
        predicted, seconds, saved, gained = found
        factors.append(max(predicted / seconds, seconds / predicted))
        console.print(
            f"{case.name}: {seconds:.2f} s, predicted {predicted:.2f}; saves {1e3 * gained:.2f} ms, {1e3 * saved:.2f}"
        )
    if factors:
        middle, most = np.quantile(factors, (0.5, 0.9))
        console.print(
            f"{len(factors)} networks; factor: median {middle:.2f}, 90% {most:.2f}, largest {max(factors):.2f}"
        )


if __name__ == "__main__":
    main()
