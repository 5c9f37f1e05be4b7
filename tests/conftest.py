"""What all tests share."""

import gc
import random

import pytest
import torch


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Make all but n of the tests of a function that is marked `few(n)` long ones, the same ones every time."""
    sweeps: dict[tuple[object, object], list[pytest.Item]] = {}
    for item in items:
        if item.get_closest_marker("few"):
            sweeps.setdefault((item.path, item.originalname), []).append(item)
    for sweep in sweeps.values():
        (count,) = sweep[0].get_closest_marker("few").args
        # Drawn, so that no parameter of several has the same value in all of them.
        chosen = random.Random(len(sweep)).sample(sweep, min(count, len(sweep)))  # noqa: S311 - no secret
        for item in sweep:
            if item not in chosen:
                item.add_marker(pytest.mark.long)


def pytest_collection_finish() -> None:
    """Leave what imports have made out of all later collections of garbage, which otherwise go through it each time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _one_thread_of_randomness():
    """Every test begins with the same global seed, whatever ran before it."""
    torch.manual_seed(0)
