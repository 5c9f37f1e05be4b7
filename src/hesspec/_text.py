"""Text of others, such as names in files, as a terminal may show it."""

import unicodedata
from typing import Final

__all__ = ["printable"]

# Controls, formats (which can turn the direction of a line), lone surrogates, and separators of lines and paragraphs.
ESCAPED: Final = {"Cc", "Cf", "Cs", "Zl", "Zp"}
# What joins letters, or keeps them apart, in several alphabets and in emoji.
JOINERS: Final = "\u200c\u200d"


def printable(text: str, keep: str = "") -> str:
    r"""Text in which each character that a terminal would obey is written as an escape, but for those in `keep`.

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
