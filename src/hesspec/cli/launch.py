"""How `torchrun` started this process: from the environment, without PyTorch."""

import os

__all__ = ["launched_ranks", "rank_here"]


def launched_ranks() -> int:
    """Number of processes that `torchrun` started with this one; 1 without it."""
    # A scheduler may set one of the two for purposes of its own.
    return int(os.environ.get("WORLD_SIZE", "1")) if "RANK" in os.environ else 1


def rank_here() -> int:
    """Number of this process among them, from 0."""
    return int(os.environ["RANK"]) if launched_ranks() > 1 else 0
