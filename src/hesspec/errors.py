"""Exceptions that hesspec raises in addition to Python's own."""

__all__ = ["InputError", "NonFiniteError", "NotSymmetricError", "RankError", "TrackerError"]


class NonFiniteError(ArithmeticError):
    """A loss, a gradient or a product with the operator contains NaN or infinity.

    The message says where it appeared first: the batch and the parameter for an operator of a network, the Lanczos step
    for any other operator. No result is written.
    """


class InputError(ValueError):
    """A model, loss or data set for which no way of computing products works; the message says what to do.

    After any other error, the next way of computing products is tried.
    """


class NotSymmetricError(ValueError):
    """An operator is not symmetric: u·Av and v·Au differ by more than rounding explains."""


class RankError(RuntimeError):
    """Another process of a distributed run failed, exited or did not answer; the message says which one and why.

    Attributes
    ----------
    reported : bool
        Whether the failing rank raises the original error itself.
    """

    def __init__(self, message: str, *, reported: bool = False) -> None:
        super().__init__(message)
        self.reported = reported


class TrackerError(RuntimeError):
    """An experiment tracker could not store a spectrum; the message says which one and why."""
