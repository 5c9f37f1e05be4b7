"""hesspec's Krylov run on the operator of curvlinops.

It tells the two parts of a difference apart: from curvlinops to this is the algorithm, from this to hesspec the matvec.
"""

from __future__ import annotations

import hesspec
from methods import Answer, Method, Problem, curvlinops
from methods.hesspec import resolved

__all__ = ["METHODS"]


def one_run(problem: Problem, seed: int) -> list[Answer]:
    """64 steps."""
    return [resolved(hesspec.spectrum(curvlinops.operator(problem), steps=64, seed=seed))]


METHODS = [Method(("hesspec's run, 64 steps, on the operator of curvlinops",), one_run)]
