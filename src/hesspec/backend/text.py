"""Text for terminals: numbers of bytes, rows, errors, and foreign text without control characters."""

import unicodedata
from collections.abc import Mapping
from typing import Any, Final

__all__ = ["error_line", "in_rows", "in_words", "kind_of", "printable", "with_article"]

# Control and format characters (which can reverse the direction of a line), lone surrogates, line and paragraph
# separators.
ESCAPED: Final = {"Cc", "Cf", "Cs", "Zl", "Zp"}
# Characters that join or separate letters in several scripts and in emoji.
JOINERS: Final = "\u200c\u200d"
# Letters whose names begin with a vowel, as in "an SGD".
SPOKEN: Final = "AEFHILMNORSX"


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


def with_article(words: str) -> str:
    """Put "a" or "an" before words that name a thing; nothing before None.

    Examples
    --------
    >>> [with_article(word) for word in ("list", "int", "SGD", "UNet", "ndarray", "None")]
    ['a list', 'an int', 'an SGD', 'a UNet', 'an ndarray', 'None']
    """
    if words == "None":
        return words
    abbreviated = words[:2].isupper()
    vowel = words[:1] in SPOKEN if abbreviated else words[:1].lower() in "aeiou" or words.startswith("ndarray")
    return f"{'an' if vowel else 'a'} {words}"


def kind_of(thing: Any, *, first: bool = False) -> str:
    """Name the class of an object in a message, with an article.

    Parameters
    ----------
    thing
    first : bool
        Whether the message begins with these words.
    """
    words = with_article("None" if thing is None else type(thing).__name__)
    return words[0].upper() + words[1:] if first else words
