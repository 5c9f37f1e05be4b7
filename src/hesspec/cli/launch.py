"""How `torchrun` started this process, read from the environment. Does not import PyTorch."""

import os

__all__ = ["launched_ranks", "rank_here"]


def launched_ranks() -> int:
    """Number of processes that `torchrun` started; 1 without `torchrun`."""
    # Schedulers may set one of the two variables for other purposes.
    return int(os.environ.get("WORLD_SIZE", "1")) if "RANK" in os.environ else 1


def rank_here() -> int:
    """Rank of this process, from 0."""
    return int(os.environ["RANK"]) if launched_ranks() > 1 else 0
