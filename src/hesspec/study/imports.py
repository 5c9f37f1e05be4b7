"""Objects in the user's own code, named `module:callable`."""

import ast
import difflib
import functools
import hashlib
import importlib
import importlib.util
import sys
import sysconfig
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Final

from hesspec.backend.files import DIGEST_DIGITS

__all__ = ["code_digest", "here_first", "load_object"]

# Folders of modules that come with Python or are installed.
_INSTALLED: Final = tuple(
    Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib", "purelib", "platlib")
)


def load_object(spec: str, kind: str) -> Callable[..., object]:
    """Import the callable that `spec` names.

    The current directory is first in `sys.path`, as with `python -m`, while the module is imported and whenever the
    callable runs, as both may import neighbouring modules; and at no other time.

    Parameters
    ----------
    spec
        `"module:callable"`, the module with dots as in an import statement, for example
        `"mine.networks:lenet"`.
    kind
        Kind of object that the callable returns ("network", "data set"), for error messages.

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
    try:
        with here_first() as here:
            module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        # Only when the named module is the missing one: a module that it imports is a fault of the
        # user's code.
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise
        raise ValueError(
            f"There is no module {error.name!r} for the {kind} {spec!r}; it was looked for in the "
            f"current directory {str(Path.cwd())!r} and among the installed packages."
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
    if not Path(getattr(module, "__file__", None) or sys.prefix).is_relative_to(here):
        return found
    made = found

    @functools.wraps(made)
    def beside_neighbours(*arguments: object, **keywords: object) -> object:
        with here_first():
            return made(*arguments, **keywords)

    return beside_neighbours


def code_digest(spec: str) -> str:
    """Compute a digest of the module that `spec` names and of all of the user's own modules that it imports.

    The whole text of each module counts, except comments and layout, as the result of a callable may depend on any
    line. Not included are installed packages, files that the code reads, environment variables, and modules that are
    imported by computed names.

    Parameters
    ----------
    spec
        See `load_object`. Only the packages that contain the module are imported.

    Returns
    -------
    str
        The digest; empty if there is no such code: an installed package, or a module that is missing or has no source.
    """
    texts: dict[str, str] = {}
    waiting = [spec.partition(":")[0]]
    with here_first():
        while waiting:
            name = waiting.pop()
            file = None if name in texts else _own_file(name)
            if file is not None:
                tree = ast.parse(file.read_bytes(), str(file))
                texts[name] = ast.unparse(tree)
                waiting += _imported(tree, name if file.name == "__init__.py" else name.rpartition(".")[0])
    if not texts:
        return ""
    return hashlib.sha256(repr(sorted(texts.items())).encode()).hexdigest()[:DIGEST_DIGITS]


@contextmanager
def here_first() -> Iterator[str]:
    """Search the current directory for modules first, within this context; yields its path."""
    here = str(Path.cwd())
    if here in sys.path:
        yield here
        return
    sys.path.insert(0, here)
    try:
        yield here
    finally:
        # Code in the block may have changed the list, too.
        with suppress(ValueError):
            sys.path.remove(here)


def _own_file(module: str) -> Path | None:
    """Return the source of a module, unless it is installed or part of this package, whose results are versioned."""
    top = module.partition(".")[0]
    # In this order, as searching for a submodule of an installed package would import that package.
    if top == __name__.partition(".")[0] or _is_installed(_spec(top)):
        return None
    found = _spec(module)
    origin = None if found is None else found.origin
    return Path(origin) if origin is not None and origin.endswith(".py") else None


def _spec(module: str) -> ModuleSpec | None:
    try:
        return importlib.util.find_spec(module)
    except (ImportError, ValueError):  # no such package; or `__main__`, which has no source in an interactive session
        return None


def _is_installed(spec: ModuleSpec | None) -> bool:
    """Whether a module is installed, comes with Python, or does not exist."""
    if spec is None or spec.origin in {"built-in", "frozen"}:
        return True
    places = [spec.origin] if spec.origin is not None else list(spec.submodule_search_locations or ())
    return any(Path(place).resolve().is_relative_to(folder) for place in places for folder in _INSTALLED)


def _imported(tree: ast.AST, package: str) -> Iterator[str]:
    """Yield names that may be modules in the import statements of a module in a package."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield from _with_packages(alias.name)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield from _with_packages(base)
            yield from (f"{base}.{alias.name}" for alias in node.names if alias.name != "*")


def _with_packages(name: str) -> Iterator[str]:
    """Yield a module and the packages that contain it."""
    parts = name.split(".")
    return (".".join(parts[:count]) for count in range(1, len(parts) + 1))
