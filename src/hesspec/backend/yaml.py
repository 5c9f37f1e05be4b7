"""Parsing of untrusted YAML within limits, as a few lines can stand for any number of values."""

from __future__ import annotations

import re
from typing import Any, Final

import yaml

__all__ = ["LARGEST_YAML", "parse_yaml"]

LARGEST_YAML: Final = 1 << 20
"""Largest size of a text, in characters or bytes."""
# Largest number of values, counting those behind aliases each time. The largest study has about a hundred.
MOST_VALUES: Final = 100_000


class _Loader(yaml.SafeLoader):
    """Plain values as in the core schema of YAML 1.2.

    An integer with leading zeros is read as a float of the same value, as PyYAML takes it for octal otherwise. In YAML
    1.1, which PyYAML reads, 010 is 8, 1:30 is 90, and yes, no, on and off are true and false.
    """

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 - as PyYAML declares it


# Forms of plain values, and the characters that they begin with.
PLAIN: Final = {
    "null": (r"~|null|Null|NULL|", "~nN"),
    "bool": (r"true|True|TRUE|false|False|FALSE", "tTfF"),
    "int": (r"[-+]?(?:0|[1-9][0-9]*)", "-+0123456789"),
    "float": (
        r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        "-+.0123456789",
    ),
    "merge": (r"<<", "<"),
}
for tag, (pattern, first) in PLAIN.items():
    characters = [*first, *([""] if tag == "null" else [])]
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{tag}", re.compile(f"^(?:{pattern})$"), characters)


def parse_yaml(text: str) -> tuple[yaml.Node, Any]:
    """Parse a YAML text to its tree, with positions, and to plain values, without other objects.

    Raises
    ------
    ValueError
        If the text is not YAML, or exceeds the limits of length, depth or number of values.
    """
    if len(text) > LARGEST_YAML:
        raise ValueError(f"it has {len(text):,} characters, but may have at most {LARGEST_YAML:,}")
    try:
        tree = yaml.compose(text, Loader=_Loader)
        if tree is None:
            raise ValueError("it is empty")
        if _values_of(tree, {}) > MOST_VALUES:
            raise ValueError(f"with its aliases it stands for more than {MOST_VALUES:,} values")
        return tree, yaml.load(text, Loader=_Loader)  # noqa: S506 - a safe loader
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except (yaml.YAMLError, OverflowError) as error:
        raise ValueError(f"it is not YAML: {' '.join(str(error).split())}") from error


def _values_of(node: yaml.Node, known: dict[int, int | None]) -> int:
    """Count the values that a node stands for."""
    if id(node) in known:
        found = known[id(node)]
        if found is None:
            raise ValueError("it has a list or a mapping that contains itself")
        return found
    known[id(node)] = None
    parts: list[yaml.Node] = []
    if isinstance(node, yaml.MappingNode):
        parts = [part for pair in node.value for part in pair]
    elif isinstance(node, yaml.SequenceNode):
        parts = node.value
    count = 1 + sum(_values_of(part, known) for part in parts)
    known[id(node)] = count
    return count
