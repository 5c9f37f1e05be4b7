"""Study files: YAML to settings of a study, with a sentence for every fault."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import yaml
from pydantic import BaseModel, ValidationError

from hesspec.backend.presets import preset_file, presets
from hesspec.backend.yaml import LARGEST_YAML, parse_yaml
from hesspec.study.config import (
    DataConfig,
    LogGrid,
    MeasureConfig,
    MonitorConfig,
    OptimizerConfig,
    SharesConfig,
    StudyConfig,
    TrainingConfig,
)
from hesspec.study.start_config import StartConfig

__all__ = ["load_study", "parse_study", "presets", "study_text"]

_SECTIONS: Final[dict[str, type[BaseModel]]] = {
    "training": TrainingConfig,
    "measure": MeasureConfig,
    "monitor": MonitorConfig,
    "shares": SharesConfig,
    "datasets": DataConfig,
    "optimizers": OptimizerConfig,
    "start": StartConfig,
}


def load_study(path: str | os.PathLike[str]) -> StudyConfig:
    """Read a study file, or a preset by its name.

    Parameters
    ----------
    path
        A YAML file with the fields of `StudyConfig`, or a name in `presets()`.

    Returns
    -------
    StudyConfig

    Raises
    ------
    FileNotFoundError
        If the file or preset does not exist.
    ValueError
        If it is not YAML, or not as described; the message has every fault with its line, and the nearest valid key for
        an unknown one.

    Examples
    --------
    >>> load_study("papyan2019").networks
    ['vgg11_bn', 'resnet18', 'densenet40']
    """
    name = os.fspath(path)
    if name in presets():
        return parse_study(preset_file(name).read_text(encoding="utf-8"), f"preset {name}")
    if not Path(name).is_file():
        nearest = difflib.get_close_matches(name, presets(), n=1)
        hint = f"did you mean the preset {nearest[0]!r}?" if nearest else f"presets are {', '.join(presets())}."
        raise FileNotFoundError(f"There is no study file {name!r}; {hint}")
    return parse_study(study_text(Path(name)), name)


def study_text(file: Path) -> str:
    """Read the text of a study file; raises ValueError, with its name, if it is not a text or is too large."""
    size = file.stat().st_size
    if size > LARGEST_YAML:
        raise ValueError(f"The study file {str(file)!r} has {size:,} bytes, but may have at most {LARGEST_YAML:,}.")
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"The study file {str(file)!r} is not a text in UTF-8: {error}.") from error


def parse_study(text: str, name: str) -> StudyConfig:
    """Parse the YAML text of a study; `name` is used in error messages."""
    try:
        tree, content = parse_yaml(text)
    except ValueError as error:
        raise ValueError(f"{name} cannot be read: {str(error).rstrip('.')}.") from error
    if not isinstance(tree, yaml.MappingNode):
        raise ValueError(f"{name} should have the keys {', '.join(StudyConfig.model_fields)}, but is not a mapping.")
    twice = list(_repeated(tree))
    if twice:
        key, line = twice[0]
        raise ValueError(f"{name}, line {line}: the key {key!r} occurs twice.")
    try:
        return StudyConfig.model_validate(content)
    except ValidationError as error:
        items = error.errors()
        # A misspelt key is also missing: it is reported only once.
        meant = {(*item["loc"][:-1], _nearest_key(item["loc"])) for item in items if item["type"] == "extra_forbidden"}
        faults = [_fault(item, tree) for item in items if item["type"] != "missing" or item["loc"] not in meant]
        raise ValueError(" ".join(f"{name}, line {line}: {text}" for line, text in sorted(faults))) from error


def _repeated(node: yaml.Node) -> Iterator[tuple[str, int]]:
    """Yield duplicate keys of mappings, and their lines."""
    if isinstance(node, yaml.MappingNode):
        seen = set()
        for key, value in node.value:
            if key.value in seen:
                yield key.value, key.start_mark.line + 1
            seen.add(key.value)
            yield from _repeated(value)
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from _repeated(item)


def _fault(item: Any, tree: yaml.Node) -> tuple[int, str]:
    """Return the line and a sentence for one of pydantic's errors."""
    path: tuple[str | int, ...] = item["loc"]
    node, reached = _descend(tree, path)
    line = node.start_mark.line + 1
    where = ".".join(map(str, reached)) or "the study"
    last = str(path[-1]) if path else ""
    if item["type"] == "extra_forbidden":
        return line, f"there is no key {last!r}; {_hint(path)}"
    if item["type"] == "missing":
        return line, f"{where} lacks the key {last!r}."
    message = str(item["msg"]).removeprefix("Value error, ").rstrip(".?")
    given = item["input"]
    # Values that the message contains already are not repeated.
    shown = f" is {given!r}" if isinstance(given, str | int | float) and repr(given) not in message else ""
    return line, f"{where}{shown}: {message[:1].lower()}{message[1:]}{'?' if item['msg'].endswith('?') else '.'}"


def _hint(path: Sequence[str | int]) -> str:
    """Suggest where an unknown key may belong, or which key was meant."""
    nearest = _nearest_key(path)
    if nearest:
        return f"did you mean {nearest!r}?"
    sections = [name for name, model in _SECTIONS.items() if path[-1] in model.model_fields]
    if sections and len(path) == 1:
        return f"it belongs under {' or '.join(sections)}."
    return f"known are {', '.join(_keys_at(path[:-1]))}."


def _nearest_key(path: Sequence[str | int]) -> str:
    """Return the key that was probably meant; empty if there is none like it."""
    return next(iter(difflib.get_close_matches(str(path[-1]), _keys_at(path[:-1]), n=1)), "")


def _descend(node: yaml.Node, path: Sequence[str | int]) -> tuple[yaml.Node, list[str | int]]:
    """Follow a path as far as possible; return the node, at its key, and that part of the path."""
    reached: list[str | int] = []
    place = node
    for step in path:
        if isinstance(node, yaml.MappingNode):
            found = [(key, value) for key, value in node.value if key.value == step]
            if not found:
                continue  # pydantic's names of alternatives
            place, node = found[0]
        elif isinstance(node, yaml.SequenceNode) and isinstance(step, int) and step < len(node.value):
            place = node = node.value[step]
        else:
            continue
        reached.append(step)
    return place, reached


def _keys_at(path: Sequence[str | int]) -> list[str]:
    """Return the keys of the model at a path."""
    model = _SECTIONS.get(str(path[0]), StudyConfig) if path else StudyConfig
    return list((LogGrid if "grid" in path else model).model_fields)
