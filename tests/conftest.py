"""What all tests share."""

import gc

import pytest
import torch


def pytest_collection_finish() -> None:
    """Leave what imports have made out of all later collections of garbage, which otherwise go through it each time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _one_thread_of_randomness():
    """Every test begins with the same global seed, whatever ran before it."""
    torch.manual_seed(0)
