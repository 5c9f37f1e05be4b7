"""Optional dependencies: the sentence where one is missing."""

from __future__ import annotations

from importlib.util import find_spec

__all__ = ["require"]


def require(what: str, package: str, *modules: str) -> None:
    """Raise an error that says what to install if one of the modules is missing.

    Parameters
    ----------
    what : str
        What needs them, as the beginning of a sentence, such as "hesspec.study".
    package : str
        What pip installs them with, such as "hesspec[study]".
    *modules : str
        Names by which they are imported.

    Raises
    ------
    ModuleNotFoundError
        The message has the command that installs what is missing.
    """
    missing = [name for name in modules if find_spec(name) is None]
    if missing:
        verb = "is" if len(missing) == 1 else "are"
        raise ModuleNotFoundError(
            f"{what} needs {' and '.join(missing)}, which {verb} not installed: pip install '{package}'.",
            name=missing[0],
        )
