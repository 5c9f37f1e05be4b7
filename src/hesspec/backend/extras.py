"""Optional dependencies: which extra of the package has what, and the sentence where it is missing."""

from __future__ import annotations

from importlib.util import find_spec

__all__ = ["require"]


def require(what: str, extra: str, *modules: str) -> None:
    """Raise an error that names the extra if one of the modules is not installed.

    Parameters
    ----------
    what : str
        What needs them, as the beginning of a sentence, such as "hesspec.study".
    extra : str
        Extra of the package that installs them.
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
            f"{what} needs {' and '.join(missing)}, which {verb} not installed: pip install 'hesspec[{extra}]'.",
            name=missing[0],
        )
