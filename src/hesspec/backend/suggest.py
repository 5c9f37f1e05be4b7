"""Suggestions for misspelt names."""

import difflib
from collections.abc import Iterable


def unknown(kind: str, name: str, known: Iterable[str]) -> str:
    """Return a sentence that `name` is not a known `kind`, with the nearest of the `known` names, or all of them.

    Examples
    --------
    >>> unknown("data set", "digit", ["digits", "mnist"])
    "There is no data set 'digit'; did you mean 'digits'?"
    >>> unknown("data set", "xyz", ["digits", "mnist"])
    "There is no data set 'xyz'; there are 'digits', 'mnist'."
    """
    known = list(known)
    nearest = difflib.get_close_matches(name, known, n=1)
    if nearest:
        return f"There is no {kind} {name!r}; did you mean {nearest[0]!r}?"
    return f"There is no {kind} {name!r}; there are {', '.join(map(repr, known))}."
