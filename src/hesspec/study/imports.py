"""Objects of the user's own code, named `module:callable`."""

import difflib
import importlib
import sys
from collections.abc import Callable
from pathlib import Path

__all__ = ["load_object"]


def load_object(spec: str, kind: str) -> Callable[..., object]:
    """Import the callable that `spec` names.

    The current directory is put in front of `sys.path` and stays there, as `python -m` does it: the
    module may import its neighbours later, when the callable runs.

    Parameters
    ----------
    spec
        `"module:callable"`, the module with dots as in an import statement, for example
        `"mine.networks:lenet"`.
    kind
        What the callable makes ("network", "data set"); it stands in the error messages only.

    Returns
    -------
    Callable
        The object, not called.

    Raises
    ------
    ValueError
        If `spec` is not of this form, there is no such module, the module has no such name, or what
        it names is not callable. Errors that the module itself raises when it is imported pass
        unchanged.

    Examples
    --------
    >>> load_object("math:hypot", "function")(3, 4)
    5.0
    """
    module_name, _, name = spec.partition(":")
    names = [name, *module_name.split(".")]
    if not all(part.isidentifier() for part in names):
        raise ValueError(
            f"The {kind} {spec!r} must be named in the form 'module:callable', the module with "
            "dots and without '.py', as in 'mine.networks:lenet'."
        )
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        # Only when the named module is the missing one: a module that it imports is a fault of the
        # user's code.
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise
        raise ValueError(
            f"There is no module {error.name!r} for the {kind} {spec!r}; it was looked for in the "
            f"current directory {here!r} and among the installed packages."
        ) from error
    if not hasattr(module, name):
        nearest = difflib.get_close_matches(name, vars(module), n=1)
        hint = f"; did you mean {nearest[0]!r}?" if nearest else "."
        raise ValueError(f"Module {module_name!r} has no {kind} {name!r}{hint}")
    found: object = getattr(module, name)
    if not callable(found):
        raise ValueError(
            f"The {kind} {spec!r} must be a function or a class, but it is an object of type {type(found).__name__!r}."
        )
    return found
