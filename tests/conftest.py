"""What all tests share."""

import pytest
import torch


@pytest.fixture(autouse=True)
def _one_thread_of_randomness():
    """Every test begins with the same global seed, whatever ran before it."""
    torch.manual_seed(0)
