"""Errors that hesspec raises beside Python's own."""

__all__ = ["InputError", "NonFiniteError", "NotSymmetricError", "RankError"]


class NonFiniteError(ArithmeticError):
    """A loss, a gradient or a product with the operator holds NaN or infinity.

    The message names where it was seen first: the batch and the parameter for an operator of a network, the Lanczos
    step for any other operator. Nothing is written after it.
    """


class InputError(ValueError):
    """A model, loss or data of which a matrix cannot be taken in any way; the message says what to do.

    Any other error of a way to compute products is a reason to try the next one.
    """


class NotSymmetricError(ValueError):
    """An operator is not symmetric: u·Av and v·Au differ by more than rounding can explain."""


class RankError(RuntimeError):
    """Another process of a distributed run failed, is gone, or did not answer; the message says which, and why.

    Attributes
    ----------
    reported : bool
        Whether the rank that failed raises the error itself.
    """

    def __init__(self, message: str, *, reported: bool = False) -> None:
        super().__init__(message)
        self.reported = reported
