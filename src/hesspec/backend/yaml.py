"""Parsing of untrusted YAML within limits, as a few lines can stand for any number of values."""

from __future__ import annotations

from typing import Any, Final

import yaml

__all__ = ["LARGEST_YAML", "parse_yaml"]

LARGEST_YAML: Final = 1 << 20
"""Largest size of a text, in characters or bytes."""
# Largest number of values, counting those behind aliases each time. The largest study has about a hundred.
MOST_VALUES: Final = 100_000


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
        tree = yaml.compose(text, Loader=yaml.SafeLoader)
        if tree is None:
            raise ValueError("it is empty")
        if _values_of(tree, {}) > MOST_VALUES:
            raise ValueError(f"with its aliases it stands for more than {MOST_VALUES:,} values")
        return tree, yaml.safe_load(text)
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
