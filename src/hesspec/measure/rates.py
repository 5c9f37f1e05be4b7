"""Parsing of rates and numbers such as "400TFLOP/s", "400GB/s" and "7e9"."""

import math
import re
from collections.abc import Mapping
from typing import Final

__all__ = ["parse_bandwidth", "parse_count", "parse_flops"]

FLOP_UNITS: Final[Mapping[str, float]] = {"": 1.0, **{letter: 1000.0**i for i, letter in enumerate("KMGTPE", 1)}}


def parse_flops(flops: str | float) -> float:
    """Convert "400TFLOP/s", "67 TFLOPS" or a number to operations per second.

    Raises
    ------
    ValueError
        If the value is neither, or is not positive.

    Examples
    --------
    >>> parse_flops("400TFLOP/s"), parse_flops("67 TFLOPS"), parse_flops(1e12)
    (400000000000000.0, 67000000000000.0, 1000000000000.0)
    """
    found = re.fullmatch(r"\s*([\d.]+(?:e\+?\d+)?)\s*(?:([KMGTPE]?)FLOPS?(?:/s)?)?\s*", str(flops), re.IGNORECASE)
    return _rate("flops", flops, found, '"400TFLOP/s" or a number of operations per second')


def parse_bandwidth(bandwidth: str | float) -> float:
    """Convert "400GB/s" or a number to bytes per second.

    Raises
    ------
    ValueError
        If the value is neither, or is not positive. Bits, as in "400Gb/s", are rejected rather than read as bytes.

    Examples
    --------
    >>> parse_bandwidth("400GB/s"), parse_bandwidth(5e10)
    (400000000000.0, 50000000000.0)
    """
    found = re.fullmatch(r"\s*([\d.]+(?:[eE]\+?\d+)?)\s*(?:([kKMGTPE]?)B/s)?\s*", str(bandwidth))
    return _rate(
        "bandwidth", bandwidth, found, '"400GB/s" (bytes: 400 Gbit/s are 50 GB/s) or a number of bytes per second'
    )


def _rate(name: str, value: str | float, found: re.Match[str] | None, advice: str) -> float:
    try:
        rate = float(found[1]) * FLOP_UNITS[(found[2] or "").upper()] if found else math.nan
    except ValueError:
        rate = math.nan
    if not 0 < rate < math.inf:
        raise ValueError(f"{name} is {value!r}, which is not a valid rate; use {advice}.")
    return rate


def parse_count(name: str, text: str) -> float:
    """Convert a string such as "7e9" or "28156554" to a number.

    Raises
    ------
    ValueError
        If the string is not a number.

    Examples
    --------
    >>> parse_count("params", "28.2e6")
    28200000.0
    """
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{name} is {text!r}, which is not a number; use one such as 7e9.") from None
