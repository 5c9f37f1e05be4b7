"""What all tests share."""

import gc
import random

import pytest
import torch

# They register a device in the process that imports them, as looking for doctests does.
collect_ignore = ["helpers/pretended_device.py", "scripts/device_applications.py", "scripts/device_products.py"]


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark all but n tests of each function with the mark `few(n)` as long, the same ones every time."""
    sweeps: dict[tuple[object, object], list[pytest.Item]] = {}
    for item in items:
        if item.get_closest_marker("few"):
            sweeps.setdefault((item.path, item.originalname), []).append(item)
    for sweep in sweeps.values():
        (count,) = sweep[0].get_closest_marker("few").args
        short = [item for item in sweep if not item.get_closest_marker("long")]
        # Drawn, so that no parameter of several has the same value in all of them.
        chosen = random.Random(len(short)).sample(short, min(count, len(short)))  # noqa: S311 - no secret
        for item in short:
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
