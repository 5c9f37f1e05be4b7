"""Docstrings name the parameters that there are."""

import inspect
import pkgutil
import re
from importlib import import_module

import hesspec

TITLE = re.compile(r"^[A-Z][A-Za-z ]+\n-{3,}\n", re.MULTILINE)
ANY = {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD}


def documented(thing):
    """Names in the section of parameters."""
    text = inspect.cleandoc(thing.__doc__ or "")
    _, _, section = text.partition("Parameters\n----------\n")
    lines = TITLE.split(section)[0].splitlines()
    entries = [line.partition(" : ")[0] for line in lines if line and not line[0].isspace()]
    return {name.strip().lstrip("*") for entry in entries for name in entry.split(",")}


def public():
    """Classes, their methods and functions of the package, by their names."""
    found = {}
    for module in pkgutil.walk_packages(hesspec.__path__, "hesspec."):
        if module.name.endswith("__main__"):
            continue
        for name, thing in vars(import_module(module.name)).items():
            if not name.startswith("_") and callable(thing) and getattr(thing, "__module__", "") == module.name:
                found[f"{module.name}.{name}"] = thing
                methods = vars(thing).items() if inspect.isclass(thing) else ()
                found |= {f"{module.name}.{name}.{key}": value for key, value in methods if inspect.isfunction(value)}
    return found


def test_documented_parameters_exist():
    unknown, checked = {}, 0
    for name, thing in public().items():
        if names := documented(thing):
            parameters = inspect.signature(thing).parameters
            checked += 1
            if not ANY & {parameter.kind for parameter in parameters.values()} and names - set(parameters):
                unknown[name] = names - set(parameters)
    assert checked > 200
    assert unknown == {}
