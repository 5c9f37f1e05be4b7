"""Seconds of traces, and those that they save, predicted and measured; and what rules lose that choose by them.

    python benchmarks/trace_cost.py [--every N] [--offset N] [--only PATTERN] [--matrix NAME ...] [--rules]

One thread, CPU seconds. For each network of `zoo/` that can be traced and each matrix, prints a line, and at the end by
which factor predicted and measured differ. `--every 10` takes every tenth network, `--offset` begins with another one,
`--only` takes those whose name has a match.

`--rules` measures networks of `hesspec.study` with several numbers of images, for which a trace pays off after one
product or never, and prints what three rules lose relative to the better of the two modes, by the number of products:
a trace if it pays for 64 products; if it pays for the known number of products ("known"); and double backward until
the products made would have paid for a trace ("rental"). Seconds are those of products and traces; verification and
primal passes are the same for all.
"""

from __future__ import annotations

import argparse
import re
import time
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

import hesspec
from _tables import console
from _turns import in_turn
from hesspec.operators.engine import passes
from hesspec.operators.engine.graph import fakes
from hesspec.operators.engine.trace_cost import PRODUCTS, ForwardWork, seconds_saved
from hesspec.study import build_network
from zoo import every_case

# A trace for the caches of PyTorch comes first. Products: turns, seconds.
WARM_UP, TURNS, SECONDS = "Mixture of experts, top 2 by a mask", 3, 0.1
MATRICES = ("Hessian", "GaussNewton", "Residual")
# Networks of `--rules`: name, width of images in pixels, numbers of images.
NETWORKS = (
    ("tanh_mlp", 16, (100, 4000)),
    ("small_cnn", 16, (20, 200, 2000)),
    ("resnet18", 16, (1, 4)),
    ("vgg11_bn", 32, (2,)),
    ("densenet40", 16, (2,)),
)
NUMBERS = (1, 3, 10, 30, 64, 300)


class Found(NamedTuple):
    """Seconds of a trace, predicted and measured, what it is predicted to save of a product, and of both products."""

    predicted: float
    seconds: float
    saved: float
    retained: float
    traced: float

    def total(self, products: int, before: float) -> float:
        """Seconds of so many products, the first of which use double backward."""
        if before >= products:
            return products * self.retained
        return before * self.retained + self.seconds + (products - before) * self.traced

    def rule(self, name: str, products: int) -> float:
        """Seconds of so many products by a rule."""
        # Products after which a trace is predicted to have paid off.
        even = self.predicted / self.saved if self.saved > 0 else np.inf
        at_once = {"64": even < PRODUCTS, "known": even < products}
        before = int(min(even, products)) if name == "rental" else 0 if at_once[name] else products
        return self.total(products, before)


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


def measured(problem: Callable[[], tuple[Any, ...]], matrix: str, options: Any, observed: Observed) -> Found | None:
    """Measure a matrix of a problem; None if it cannot be traced."""
    multiply = {}
    # As in the first trace of a process.
    fakes._KNOWN.clear()  # noqa: SLF001
    for mode in ("double backward", "traced"):
        observed.forced = mode == "traced"
        operator = getattr(hesspec, matrix)(*problem(), **{**options, "verify": False})
        vector = torch.ones(operator.shape[0], dtype=operator.dtype)
        _ = operator @ vector
        if operator.attributes["mode"] != mode:
            return None
        multiply[mode] = lambda operator=operator, vector=vector: operator @ vector
    taken = {mode: float(np.median(seconds)) for mode, seconds in in_turn(multiply, TURNS, SECONDS).items()}
    return Found(observed.predicted, observed.seconds, observed.saved, taken["double backward"], taken["traced"])


def compare(options: argparse.Namespace, observed: Observed) -> None:
    """Print predicted and measured seconds of networks of the zoo."""
    cases = [case for case in every_case() if not case.missing and not case.sentence]
    factors: dict[str, list[float]] = {matrix: [] for matrix in options.matrix}
    for case in [case for case in cases if re.search(options.only, case.name)][options.offset :: options.every]:
        for matrix in options.matrix:
            example = case.example()
            found = None
            if example.surroundings is None:
                problem = example.model, example.loss, example.data
                found = measured(lambda problem=problem: problem, matrix, example.options, observed)
            if found is None:
                console.print(f"[dim]{case.name}, {matrix}: not traced")
                continue
            factors[matrix].append(max(found.predicted / found.seconds, found.seconds / found.predicted))
            console.print(
                f"{case.name}, {matrix}: {found.seconds:.2f} s, predicted {found.predicted:.2f}; saves "
                f"{1e3 * (found.retained - found.traced):.2f} ms, {1e3 * found.saved:.2f}"
            )
    for matrix, values in factors.items():
        if values:
            middle, most = np.quantile(values, (0.5, 0.9))
            console.print(
                f"{matrix}, {len(values)} networks; factor: median {middle:.2f}, 90% {most:.2f}, largest "
                f"{max(values):.2f}"
            )


def compare_rules(options: argparse.Namespace, observed: Observed) -> None:
    """Print what rules lose of the time of a run."""
    every = []
    for name, size, numbers in NETWORKS:
        for images in numbers:
            torch.manual_seed(0)
            model = build_network(name, channels=1, classes=10, size=size).eval()
            problem = model, nn.CrossEntropyLoss(), [(torch.randn(images, 1, size, size), torch.arange(images) % 10)]
            for matrix in options.matrix:
                found = measured(lambda problem=problem: problem, matrix, {}, observed)
                assert found is not None, f"{name} is not traced"
                every.append(found)
                gained = found.retained - found.traced
                even = f"{found.seconds / gained:.0f} products" if gained > 0 else "never"
                console.print(
                    f"{name}, {images} images, {matrix}: products {1e3 * found.retained:.1f} and "
                    f"{1e3 * found.traced:.1f} ms; saves {1e3 * gained:.1f} ms, predicted {1e3 * found.saved:.1f}; "
                    f"trace {found.seconds:.2f} s, predicted {found.predicted:.2f}; pays after {even}"
                )
    for number in NUMBERS:
        lost = {}
        for rule in ("64", "known", "rental"):
            best = [min(found.total(number, 0), found.total(number, number)) for found in every]
            lost[rule] = [found.rule(rule, number) / least - 1 for found, least in zip(every, best, strict=True)]
        text = "; ".join(f"{rule} {np.mean(values):.0%}, at most {max(values):.0%}" for rule, values in lost.items())
        console.print(f"{number} products: {text}")


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--every", type=int, default=1, metavar="N", help="every Nth network")
    parser.add_argument("--offset", type=int, default=0, metavar="N", help="networks that are left out at first")
    parser.add_argument("--only", default="", metavar="PATTERN", help="networks whose name has a match")
    parser.add_argument("--matrix", nargs="+", choices=MATRICES, default=["Hessian"], help="matrices")
    parser.add_argument("--rules", action="store_true", help="compare rules")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    observed = Observed()
    example = next(case for case in every_case() if case.name == WARM_UP).example()
    measured(lambda: (example.model, example.loss, example.data), "Hessian", example.options, observed)
    (compare_rules if options.rules else compare)(options, observed)


if __name__ == "__main__":
    main()
