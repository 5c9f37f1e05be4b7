"""What all tests share."""

import sys
from pathlib import Path

import pytest
import torch

# `cases` is imported by name from every test folder.
sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(autouse=True)
def _one_thread_of_randomness():
    """Every test begins with the same global seed, whatever ran before it."""
    torch.manual_seed(0)
