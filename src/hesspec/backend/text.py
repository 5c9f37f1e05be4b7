"""Text for terminals: numbers of bytes, rows, errors, and foreign text without control characters."""

import unicodedata
from collections.abc import Mapping
from typing import Final

__all__ = ["error_line", "in_rows", "in_words", "printable"]

# Control and format characters (which can reverse the direction of a line), lone surrogates, line and paragraph
# separators.
ESCAPED: Final = {"Cc", "Cf", "Cs", "Zl", "Zp"}
# Characters that join or separate letters in several scripts and in emoji.
JOINERS: Final = "\u200c\u200d"


def printable(text: str, keep: str = "") -> str:
    r"""Escape each character that a terminal would interpret, except those in `keep`.

    Examples
    --------
    >>> printable("λ\x1b[2J\n")
    'λ\\x1b[2J\\n'
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        character.encode("unicode_escape").decode()
        if unicodedata.category(character) in ESCAPED and character not in JOINERS + keep
        else character
        for character in text
    )


def in_words(size: float) -> str:
    """Format a number of bytes with a unit, in powers of 1000: "1.23 GB"."""
    for unit in ("bytes", "kB", "MB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} GB" if size < 1000 else f"{size:,.0f} GB"


def error_line(error: BaseException) -> str:
    """Message of an error in one line, without the number of an error of the operating system.

    Examples
    --------
    >>> error_line(PermissionError(13, "Permission denied", "a.nc"))
    "Permission denied: 'a.nc'."
    """
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{error.strerror}: {str(error.filename)!r}."
    return " ".join(str(error).split()) or type(error).__name__


def in_rows(title: str, rows: Mapping[str, str]) -> str:
    """A title, and a line for each name with its value."""
    width = max(map(len, rows))
    return "\n".join([title, *(f"  {name:<{width}}  {printable(value)}" for name, value in rows.items())])
